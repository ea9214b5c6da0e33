// The pixel contract on Android: from decoded pixels to what the network sees, as handlens/preprocess.py does it.
//
// From the same decoded pixels `fit` gives the same bytes as Python's: Pillow's antialiased resize, each axis by
// itself, with weights in 22-bit fixed point and 8 bits between the two passes. Plain Kotlin, without Android.

package handlens

import kotlin.math.PI
import kotlin.math.abs
import kotlin.math.ceil
import kotlin.math.max
import kotlin.math.min
import kotlin.math.sin

/** What bundle.json says under "preprocess", less what is inside the model. */
class Contract(val imagePx: Int, val resize: String, val resizePx: Int, val interpolation: String)

private const val THIN = 16 // a photo this many times as long as wide is cut before it is resized
private const val LETTERBOX_GREY = 114
private const val PRECISION_BITS = 22
private const val HALF = 1 shl (PRECISION_BITS - 1)

/** Resize and crop upright pixels, 0xAARRGGBB as Bitmap.getPixels gives them: RGB bytes of (imagePx, imagePx, 3). */
fun fit(argb: IntArray, width: Int, height: Int, contract: Contract): ByteArray {
    val px = contract.imagePx
    val photo = Image(rgbOverWhite(argb), width, height)
    val whole = floatArrayOf(0f, 0f, width.toFloat(), height.toFloat())
    val kernel = contract.interpolation
    when (contract.resize) {
        "squash" -> return resize(photo, px, px, kernel, whole, 0, 0, px, px)
        "letterbox" -> {
            val scale = px.toDouble() / max(width, height)
            val across = max(1, Math.rint(width * scale).toInt()) // halves go to the even neighbour, as in Python
            val down = max(1, Math.rint(height * scale).toInt())
            val small = resize(photo, across, down, kernel, whole, 0, 0, across, down)
            val canvas = ByteArray(3 * px * px) { LETTERBOX_GREY.toByte() }
            for (y in 0 until down) {
                small.copyInto(canvas, 3 * (px * ((px - down) / 2 + y) + (px - across) / 2), 3 * across * y, 3 * across * (y + 1))
            }
            return canvas
        }
    }
    val (across, down) = shorterSideTo(width, height, contract.resizePx)
    val left = (across - px) / 2
    val top = (down - px) / 2
    if (max(across, down) > THIN * contract.resizePx) {
        val x = width.toDouble() / across
        val y = height.toDouble() / down
        val box = doubleArrayOf(left * x, top * y, (left + px) * x, (top + px) * y)
        return resize(photo, px, px, kernel, FloatArray(4) { box[it].toFloat() }, 0, 0, px, px)
    }
    return resize(photo, across, down, kernel, whole, left, top, left + px, top + px)
}

/** (width, height) with the shorter side `px` and the other in proportion, rounded down. */
fun shorterSideTo(width: Int, height: Int, px: Int): Pair<Int, Int> =
    if (width <= height) Pair(px, max(px, (height.toLong() * px / width).toInt()))
    else Pair(max(px, (width.toLong() * px / height).toInt()), px)

/** RGB bytes of width x height pixels; `left` and `top` are where it begins in the image that it is a part of. */
private class Image(val rgb: ByteArray, val width: Int, val height: Int, val left: Int = 0, val top: Int = 0)

private fun rgbOverWhite(argb: IntArray): ByteArray {
    val rgb = ByteArray(3 * argb.size)
    for (i in argb.indices) {
        val alpha = argb[i] ushr 24
        for (channel in 0..2) {
            val value = argb[i] shr (16 - 8 * channel) and 255
            rgb[3 * i + channel] = ((value * alpha + 255 * (255 - alpha) + 127) / 255).toByte()
        }
    }
    return rgb
}

/** The part from (left, top) to (right, bottom) of the photo's `box` resized to across x down. */
private fun resize(
    photo: Image, across: Int, down: Int, kernel: String, box: FloatArray, left: Int, top: Int, right: Int, bottom: Int
): ByteArray {
    if (kernel == "nearest") {
        val xs = nearest(box[0], box[2], across, photo.width)
        val ys = nearest(box[1], box[3], down, photo.height)
        val columns = right - left
        return ByteArray(3 * columns * (bottom - top)) {
            val pixel = it / 3
            photo.rgb[3 * (photo.width * ys[top + pixel / columns] + xs[left + pixel % columns]) + it % 3]
        }
    }
    val horizontal = Weights(photo.width, box[0], box[2], across, kernel, left, right)
    val vertical = Weights(photo.height, box[1], box[3], down, kernel, top, bottom)
    val shorterBy = photo.height - down
    return if (shorterBy > 0 && shorterBy > 2 * (photo.width - across)) { // Pillow 13 then begins with the columns
        val narrow = resizeDown(photo, vertical, horizontal.begin, horizontal.end)
        resizeAcross(narrow, horizontal, 0, bottom - top).rgb
    } else {
        val low = resizeAcross(photo, horizontal, vertical.begin, vertical.end)
        resizeDown(low, vertical, 0, right - left).rgb
    }
}

private fun resizeAcross(image: Image, weights: Weights, top: Int, bottom: Int): Image {
    val width = weights.first.size
    val out = ByteArray(3 * width * (bottom - top))
    for (y in top until bottom) for (x in 0 until width) for (channel in 0..2) {
        var sum = HALF
        var from = 3 * (image.width * (y - image.top) + weights.first[x] - image.left) + channel
        for (k in x * weights.size until x * weights.size + weights.count[x]) {
            sum += (image.rgb[from].toInt() and 255) * weights.fixed[k]
            from += 3
        }
        out[3 * (width * (y - top) + x) + channel] = clipped(sum)
    }
    return Image(out, width, bottom - top, 0, top)
}

private fun resizeDown(image: Image, weights: Weights, left: Int, right: Int): Image {
    val width = right - left
    val height = weights.first.size
    val out = ByteArray(3 * width * height)
    for (y in 0 until height) for (x in 0 until 3 * width) {
        var sum = HALF
        var from = 3 * (image.width * (weights.first[y] - image.top) + left - image.left) + x
        for (k in y * weights.size until y * weights.size + weights.count[y]) {
            sum += (image.rgb[from].toInt() and 255) * weights.fixed[k]
            from += 3 * image.width
        }
        out[3 * width * y + x] = clipped(sum)
    }
    return Image(out, width, height, left, 0)
}

private fun clipped(sum: Int): Byte = (sum shr PRECISION_BITS).coerceIn(0, 255).toByte()

/** For outputs `from` to `to` of `outSize`: the first input of each, their number, and weights in fixed point. */
private class Weights(inSize: Int, in0: Float, in1: Float, outSize: Int, kernel: String, from: Int, to: Int) {
    val first = IntArray(to - from)
    val count = IntArray(to - from)
    val size: Int
    val fixed: IntArray

    init {
        val scale = (in1 - in0).toDouble() / outSize
        val same = in0 == 0f && in1 == inSize.toFloat() && outSize == inSize // Pillow leaves this pass out
        val filterScale = max(scale, 1.0) // averages over all that is left out: antialiasing
        val support = reach(kernel) * filterScale
        size = if (same) 1 else ceil(support).toInt() * 2 + 1
        fixed = IntArray(size * (to - from))
        for (i in 0 until to - from) {
            if (same) {
                first[i] = from + i
                count[i] = 1
                fixed[i] = 1 shl PRECISION_BITS
                continue
            }
            val centre = in0 + (from + i + 0.5) * scale
            first[i] = max(0, (centre - support + 0.5).toInt())
            count[i] = min(inSize, (centre + support + 0.5).toInt()) - first[i]
            val values = DoubleArray(count[i]) { value(kernel, (it + first[i] - centre + 0.5) * (1 / filterScale)) }
            var sum = 0.0
            for (value in values) sum += value
            for ((k, value) in values.withIndex()) {
                val share = (if (sum == 0.0) value else value / sum) * (1 shl PRECISION_BITS)
                fixed[size * i + k] = (share + if (share < 0) -0.5 else 0.5).toInt()
            }
        }
    }

    val begin get() = first.min()
    val end get() = first.indices.maxOf { first[it] + count[it] }
}

private fun reach(kernel: String): Double = when (kernel) {
    "bilinear" -> 1.0
    "bicubic" -> 2.0
    "lanczos" -> 3.0
    else -> throw IllegalArgumentException("unknown interpolation $kernel")
}

private fun value(kernel: String, distance: Double): Double {
    val x = abs(distance)
    return when (kernel) {
        "bilinear" -> max(0.0, 1 - x)
        "bicubic" -> if (x < 1) (1.5 * x - 2.5) * x * x + 1 else if (x < 2) (((x - 5) * x + 8) * x - 4) * -0.5 else 0.0
        else -> if (distance >= -3 && distance < 3) sinc(distance) * sinc(distance / 3) else 0.0
    }
}

private fun sinc(x: Double): Double = if (x == 0.0) 1.0 else sin(x * PI) / (x * PI)

/** The input pixel of each output; summed step by step, as Pillow does, for sums round otherwise than products. */
private fun nearest(in0: Float, in1: Float, outSize: Int, inSize: Int): IntArray {
    val step = (in1 - in0).toDouble() / outSize
    var at = in0 + step * 0.5
    return IntArray(outSize) { min(inSize - 1, at.toInt()).also { at += step } }
}
