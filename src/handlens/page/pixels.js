// The pixel contract in the browser: from decoded pixels to what the network sees, as handlens/preprocess.py does it.
//
// From the same decoded pixels `fit` gives the same bytes as Python's. It resizes as Pillow 13 does: antialiased, each
// axis by itself, with weights in 22-bit fixed point and 8 bits between the two passes. Tests compare every byte.

const THIN = 16; // a photo this many times as long as wide is cut before it is resized
const LETTERBOX_GREY = 114;
const PRECISION_BITS = 22;
const HALF = 1 << (PRECISION_BITS - 1);
const STRIP_PIXELS = 4 << 20; // read from a canvas at once: phones limit a canvas's area

const HAS_EXIF = 8; // of a WebP's flags
const EXIF_PREFIX = 0x45786966; // "Exif"
const ORIENTATION_TAG = 0x0112;

const sinc = (x) => (x === 0 ? 1 : Math.sin(x * Math.PI) / (x * Math.PI));

// How far each kernel reaches, in pixels of the smaller of the two images, and its value at a distance.
const KERNELS = {
  bilinear: [1, (x) => Math.max(0, 1 - Math.abs(x))],
  bicubic: [2, cubic],
  lanczos: [3, (x) => (x >= -3 && x < 3 ? sinc(x) * sinc(x / 3) : 0)],
};

function cubic(x) {
  const a = -0.5;
  x = Math.abs(x);
  if (x < 1) return ((a + 2) * x - (a + 3)) * x * x + 1;
  if (x < 2) return (((x - 5) * x + 8) * x - 4) * a;
  return 0;
}

/** The photo in a file as an upright ImageBitmap, its numbers unchanged by colour profiles, as Pillow reads them. */
export async function decode(file) {
  const webp = await turnedWebp(file);
  const bitmap = await createImageBitmap(webp?.unturned ?? file, {
    imageOrientation: "from-image",
    colorSpaceConversion: "none",
    premultiplyAlpha: "none",
  });
  return webp ? upright(bitmap, webp.orientation) : bitmap;
}

/**
 * Of a WebP that its EXIF turns: {orientation, unturned}. Some browsers heed it and some do not, so they are given the
 * file without it.
 */
async function turnedWebp(file) {
  const head = new Uint8Array(await file.slice(0, 21).arrayBuffer());
  const webp = tag(head, 0) === "RIFF" && tag(head, 8) === "WEBP" && tag(head, 12) === "VP8X";
  if (!webp || !(head[20] & HAS_EXIF)) return null;
  const bytes = new Uint8Array(await file.arrayBuffer());
  const view = new DataView(bytes.buffer);
  for (let at = 12; at + 8 <= bytes.length; ) {
    const size = view.getUint32(at + 4, true);
    if (tag(bytes, at) === "EXIF") {
      const orientation = orientationOf(new DataView(bytes.buffer, at + 8, Math.min(size, bytes.length - at - 8)));
      bytes.fill(0x2d, at, at + 4); // what they do not know decoders pass over
      return orientation > 1 ? { orientation, unturned: new Blob([bytes]) } : null;
    }
    at += 8 + size + (size % 2);
  }
  return null;
}

const tag = (bytes, at) => String.fromCharCode(...bytes.subarray(at, at + 4));

/** The orientation that EXIF gives, 1 to 8; 1 where it gives none. */
function orientationOf(exif) {
  try {
    const start = exif.getUint32(0) === EXIF_PREFIX ? 6 : 0; // some write a JPEG's prefix before it
    const little = exif.getUint16(start) === 0x4949;
    const entries = start + exif.getUint32(start + 4, little);
    for (let i = 0; i < exif.getUint16(entries, little); i++) {
      const entry = entries + 2 + 12 * i;
      if (exif.getUint16(entry, little) !== ORIENTATION_TAG) continue;
      const value = exif.getUint16(entry + 8, little);
      return value >= 1 && value <= 8 ? value : 1;
    }
  } catch {
    // it is cut off
  }
  return 1;
}

/** A bitmap turned as an EXIF orientation says; what is transparent is laid over white. */
function upright(bitmap, orientation) {
  const { width: w, height: h } = bitmap;
  const turns = [null, null, [-1, 0, 0, 1, w, 0], [-1, 0, 0, -1, w, h], [1, 0, 0, -1, 0, h],
    [0, 1, 1, 0, 0, 0], [0, 1, -1, 0, h, 0], [0, -1, -1, 0, h, w], [0, -1, 1, 0, 0, w]];
  const canvas = orientation > 4 ? new OffscreenCanvas(h, w) : new OffscreenCanvas(w, h);
  const context = canvas.getContext("2d");
  context.fillStyle = "#fff";
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.imageSmoothingEnabled = false;
  context.setTransform(...turns[orientation]);
  context.drawImage(bitmap, 0, 0);
  bitmap.close();
  return canvas.transferToImageBitmap();
}

/** The pixels of an ImageBitmap as RGBA bytes; what is transparent is laid over white. */
export function pixelsOf(bitmap) {
  const { width, height } = bitmap;
  const rows = Math.min(height, Math.max(1, Math.floor(STRIP_PIXELS / width)));
  const context = new OffscreenCanvas(width, rows).getContext("2d", { willReadFrequently: true });
  if (!context) throw new Error("no canvas");
  const rgba = new Uint8ClampedArray(4 * width * height);
  for (let top = 0; top < height; top += rows) {
    context.fillStyle = "#fff";
    context.fillRect(0, 0, width, rows);
    context.drawImage(bitmap, 0, -top);
    const strip = context.getImageData(0, 0, width, Math.min(rows, height - top));
    rgba.set(strip.data, 4 * width * top);
  }
  return rgba;
}

/**
 * Resize and crop upright RGBA pixels by a contract: RGB bytes of (image_px, image_px, 3).
 * contract: {image_px, resize: "crop" | "letterbox" | "squash", resize_px, interpolation}.
 */
export function fit(rgba, width, height, contract) {
  const px = contract.image_px;
  const photo = { rgba, width, height };
  const whole = [0, 0, width, height];
  if (contract.resize === "squash") {
    return resize(photo, px, px, contract.interpolation, whole, [0, 0, px, px]);
  }
  if (contract.resize === "letterbox") {
    const scale = px / Math.max(width, height);
    const across = Math.max(1, roundHalfEven(width * scale));
    const down = Math.max(1, roundHalfEven(height * scale));
    const small = resize(photo, across, down, contract.interpolation, whole, [0, 0, across, down]);
    const canvas = new Uint8Array(3 * px * px).fill(LETTERBOX_GREY);
    const left = (px - across) >> 1;
    const top = (px - down) >> 1;
    for (let y = 0; y < down; y++) {
      canvas.set(small.subarray(3 * across * y, 3 * across * (y + 1)), 3 * (px * (top + y) + left));
    }
    return canvas;
  }
  const [across, down] = shorterSideTo(width, height, contract.resize_px);
  const left = (across - px) >> 1;
  const top = (down - px) >> 1;
  if (Math.max(across, down) > THIN * contract.resize_px) {
    const x = width / across;
    const y = height / down;
    const box = [left * x, top * y, (left + px) * x, (top + px) * y];
    return resize(photo, px, px, contract.interpolation, box, [0, 0, px, px]);
  }
  return resize(photo, across, down, contract.interpolation, whole, [left, top, left + px, top + px]);
}

/** [width, height] with the shorter side `px` and the other in proportion, rounded down. */
export function shorterSideTo(width, height, px) {
  return width <= height
    ? [px, Math.max(px, Math.trunc((height * px) / width))]
    : [Math.max(px, Math.trunc((width * px) / height)), px];
}

/** As Python's round(): halves go to the even neighbour. */
function roundHalfEven(x) {
  const below = Math.floor(x);
  const rest = x - below;
  return rest > 0.5 || (rest === 0.5 && below % 2 === 1) ? below + 1 : below;
}

/**
 * The part `[left, top, right, bottom]` of the photo's `box` resized to `across` x `down`, as RGB bytes.
 * Pillow takes the box in single precision, so it is rounded here.
 */
function resize(photo, across, down, interpolation, box, [left, top, right, bottom]) {
  const [x0, y0, x1, y1] = box.map(Math.fround);
  const columns = right - left;
  if (interpolation === "nearest") {
    const xs = nearest(x0, x1, across, photo.width);
    const ys = nearest(y0, y1, down, photo.height);
    const out = new Uint8Array(3 * columns * (bottom - top));
    let to = 0;
    for (let y = top; y < bottom; y++) {
      for (let x = left; x < right; x++) {
        const from = 4 * (photo.width * ys[y] + xs[x]);
        out[to++] = photo.rgba[from];
        out[to++] = photo.rgba[from + 1];
        out[to++] = photo.rgba[from + 2];
      }
    }
    return out;
  }
  const horizontal = weights(photo.width, x0, x1, across, interpolation, left, right);
  const vertical = weights(photo.height, y0, y1, down, interpolation, top, bottom);
  const image = { data: photo.rgba, step: 4, width: photo.width, left: 0, top: 0 };
  const shorterBy = photo.height - down;
  if (shorterBy > 0 && shorterBy > 2 * (photo.width - across)) { // Pillow 13 then begins with the columns
    return bytes(resizeAcross(resizeDown(image, vertical, ...used(horizontal)), horizontal, 0, bottom - top));
  }
  return bytes(resizeDown(resizeAcross(image, horizontal, ...used(vertical)), vertical, 0, right - left));
}

const bytes = ({ data }) => new Uint8Array(data.buffer);

/** The inputs that weights reach: [first, the one after the last]. */
function used({ first, count }) {
  return [Math.min(...first), Math.max(...first.map((start, i) => start + count[i]))];
}

/** Rows `top` to `bottom` of an image, resized across: {data, step: 3, ...}. `left` and `top` are where it begins. */
function resizeAcross(image, { first, count, fixed, size }, top, bottom) {
  const { data, step } = image;
  const width = first.length;
  const out = new Uint8ClampedArray(3 * width * (bottom - top));
  let to = 0;
  for (let y = top; y < bottom; y++) {
    for (let x = 0; x < width; x++) {
      let r = HALF, g = HALF, b = HALF;
      let from = step * (image.width * (y - image.top) + first[x] - image.left);
      let k = x * size;
      for (const end = k + count[x]; k < end; k++, from += step) {
        const weight = fixed[k];
        r += data[from] * weight;
        g += data[from + 1] * weight;
        b += data[from + 2] * weight;
      }
      out[to++] = r >> PRECISION_BITS;
      out[to++] = g >> PRECISION_BITS;
      out[to++] = b >> PRECISION_BITS;
    }
  }
  return { data: out, step: 3, width, left: 0, top };
}

/** Columns `left` to `right` of an image, resized down. */
function resizeDown(image, { first, count, fixed, size }, left, right) {
  const { data, step } = image;
  const width = right - left;
  const out = new Uint8ClampedArray(3 * width * first.length);
  const stride = step * image.width;
  let to = 0;
  for (let y = 0; y < first.length; y++) {
    const row = stride * (first[y] - image.top);
    for (let x = left; x < right; x++) {
      let r = HALF, g = HALF, b = HALF;
      let from = row + step * (x - image.left);
      let k = y * size;
      for (const end = k + count[y]; k < end; k++, from += stride) {
        const weight = fixed[k];
        r += data[from] * weight;
        g += data[from + 1] * weight;
        b += data[from + 2] * weight;
      }
      out[to++] = r >> PRECISION_BITS;
      out[to++] = g >> PRECISION_BITS;
      out[to++] = b >> PRECISION_BITS;
    }
  }
  return { data: out, step: 3, width, left, top: 0 };
}

/** For outputs `from` to `to` of `outSize`: the first input of each, their number, and weights in fixed point. */
function weights(inSize, in0, in1, outSize, interpolation, from, to) {
  if (!Object.hasOwn(KERNELS, interpolation)) throw new Error(`unknown interpolation ${interpolation}`);
  if (in0 === 0 && in1 === inSize && outSize === inSize) return unchanged(from, to);
  const [reach, kernel] = KERNELS[interpolation];
  const scale = Math.fround(in1 - in0) / outSize;
  const filterScale = Math.max(scale, 1); // averages over all that is left out: antialiasing
  const support = reach * filterScale;
  const size = Math.ceil(support) * 2 + 1;
  const made = { size, first: [], count: [], fixed: new Int32Array(size * (to - from)) };
  for (let i = from; i < to; i++) {
    const centre = in0 + (i + 0.5) * scale;
    const first = Math.max(0, Math.trunc(centre - support + 0.5));
    const count = Math.min(inSize, Math.trunc(centre + support + 0.5)) - first;
    const values = [];
    let sum = 0;
    for (let x = 0; x < count; x++) {
      values.push(kernel((x + first - centre + 0.5) * (1 / filterScale)));
      sum += values[x];
    }
    made.first.push(first);
    made.count.push(count);
    values.forEach((value, x) => {
      const share = (sum === 0 ? value : value / sum) * (1 << PRECISION_BITS);
      made.fixed[size * (i - from) + x] = Math.trunc(share + (share < 0 ? -0.5 : 0.5));
    });
  }
  return made;
}

/** Pillow leaves out a pass that would change nothing. */
function unchanged(from, to) {
  const count = to - from;
  return {
    size: 1,
    first: Array.from({ length: count }, (_, i) => from + i),
    count: new Array(count).fill(1),
    fixed: new Int32Array(count).fill(1 << PRECISION_BITS),
  };
}

/** The input pixel of each output; summed step by step, as Pillow does, for sums round otherwise than products. */
function nearest(in0, in1, outSize, inSize) {
  const step = Math.fround(in1 - in0) / outSize;
  const found = new Int32Array(outSize);
  let at = in0 + step * 0.5;
  for (let i = 0; i < outSize; i++, at += step) found[i] = Math.min(inSize - 1, Math.trunc(at));
  return found;
}
