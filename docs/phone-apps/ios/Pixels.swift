// The pixel contract on Apple's systems: from decoded pixels to what the network sees, as handlens/preprocess.py does
// it: Pillow's antialiased resize, each axis by itself, with weights in 22-bit fixed point and 8 bits between the two
// passes. Plain Swift.

import Foundation

/// What bundle.json says under "preprocess", less what is inside the model.
struct Contract: Decodable {
    let image_px: Int
    let resize: String
    let resize_px: Int
    let interpolation: String
}

private let thin = 16  // a photo this many times as long as wide is cut before it is resized
private let precisionBits = 22
private let half = 1 << (precisionBits - 1)

/// RGB bytes of width x height pixels; `left` and `top` are where it begins in the image that it is a part of.
struct Pixels {
    var rgb: [UInt8]
    var width: Int
    var height: Int
    var left = 0
    var top = 0
}

/// Resize and crop upright pixels: RGB bytes of (image_px, image_px, 3).
func fit(_ photo: Pixels, _ contract: Contract) -> [UInt8] {
    let px = contract.image_px
    let whole = [Float(0), 0, Float(photo.width), Float(photo.height)]
    let kernel = contract.interpolation
    if contract.resize == "squash" {
        return resize(photo, px, px, kernel, whole, 0..<px, 0..<px)
    }
    if contract.resize == "letterbox" {
        let scale = Double(px) / Double(max(photo.width, photo.height))
        // Halves go to the even neighbour, as in Python.
        let across = max(1, Int((Double(photo.width) * scale).rounded(.toNearestOrEven)))
        let down = max(1, Int((Double(photo.height) * scale).rounded(.toNearestOrEven)))
        let small = resize(photo, across, down, kernel, whole, 0..<across, 0..<down)
        var canvas = [UInt8](repeating: 114, count: 3 * px * px)
        for y in 0..<down {
            let to = 3 * (px * ((px - down) / 2 + y) + (px - across) / 2)
            canvas.replaceSubrange(to..<to + 3 * across, with: small[3 * across * y..<3 * across * (y + 1)])
        }
        return canvas
    }
    let (across, down) = shorterSideTo(photo.width, photo.height, contract.resize_px)
    let left = (across - px) / 2
    let top = (down - px) / 2
    if max(across, down) > thin * contract.resize_px {
        let x = Double(photo.width) / Double(across)
        let y = Double(photo.height) / Double(down)
        let box = [Double(left) * x, Double(top) * y, Double(left + px) * x, Double(top + px) * y].map { Float($0) }
        return resize(photo, px, px, kernel, box, 0..<px, 0..<px)
    }
    return resize(photo, across, down, kernel, whole, left..<left + px, top..<top + px)
}

/// (width, height) with the shorter side `px` and the other in proportion, rounded down.
func shorterSideTo(_ width: Int, _ height: Int, _ px: Int) -> (Int, Int) {
    width <= height ? (px, max(px, height * px / width)) : (max(px, width * px / height), px)
}

/// The given columns and rows of the photo's `box` resized to across x down.
private func resize(
    _ photo: Pixels, _ across: Int, _ down: Int, _ kernel: String, _ box: [Float], _ columns: Range<Int>, _ rows: Range<Int>
) -> [UInt8] {
    if kernel == "nearest" {
        let xs = nearest(box[0], box[2], across, photo.width)
        let ys = nearest(box[1], box[3], down, photo.height)
        var out: [UInt8] = []
        for y in rows {
            for x in columns {
                let from = 3 * (photo.width * ys[y] + xs[x])
                out.append(contentsOf: photo.rgb[from..<from + 3])
            }
        }
        return out
    }
    let horizontal = Weights(photo.width, box[0], box[2], across, kernel, columns)
    let vertical = Weights(photo.height, box[1], box[3], down, kernel, rows)
    let shorterBy = photo.height - down
    if shorterBy > 0 && shorterBy > 2 * (photo.width - across) {  // Pillow 13 then begins with the columns
        return resizeAcross(resizeDown(photo, vertical, horizontal.used), horizontal, 0..<rows.count).rgb
    }
    return resizeDown(resizeAcross(photo, horizontal, vertical.used), vertical, 0..<columns.count).rgb
}

private func resizeAcross(_ image: Pixels, _ weights: Weights, _ rows: Range<Int>) -> Pixels {
    let width = weights.first.count
    var out = [UInt8](repeating: 0, count: 3 * width * rows.count)
    for y in rows {
        for x in 0..<width {
            for channel in 0..<3 {
                var sum = half
                var from = 3 * (image.width * (y - image.top) + weights.first[x] - image.left) + channel
                for k in 0..<weights.count[x] {
                    sum += Int(image.rgb[from]) * weights.fixed[x * weights.size + k]
                    from += 3
                }
                out[3 * (width * (y - rows.lowerBound) + x) + channel] = clipped(sum)
            }
        }
    }
    return Pixels(rgb: out, width: width, height: rows.count, left: 0, top: rows.lowerBound)
}

private func resizeDown(_ image: Pixels, _ weights: Weights, _ columns: Range<Int>) -> Pixels {
    let width = columns.count
    var out = [UInt8](repeating: 0, count: 3 * width * weights.first.count)
    for y in 0..<weights.first.count {
        for x in 0..<3 * width {
            var sum = half
            var from = 3 * (image.width * (weights.first[y] - image.top) + columns.lowerBound - image.left) + x
            for k in 0..<weights.count[y] {
                sum += Int(image.rgb[from]) * weights.fixed[y * weights.size + k]
                from += 3 * image.width
            }
            out[3 * width * y + x] = clipped(sum)
        }
    }
    return Pixels(rgb: out, width: width, height: weights.first.count, left: columns.lowerBound, top: 0)
}

private func clipped(_ sum: Int) -> UInt8 {
    UInt8(min(255, max(0, sum >> precisionBits)))
}

/// For some outputs of `outSize`: the first input of each, their number, and weights in fixed point.
private struct Weights {
    var first: [Int] = []
    var count: [Int] = []
    var size = 1
    var fixed: [Int] = []

    init(_ inSize: Int, _ in0: Float, _ in1: Float, _ outSize: Int, _ kernel: String, _ outputs: Range<Int>) {
        if in0 == 0 && in1 == Float(inSize) && outSize == inSize {  // Pillow leaves this pass out
            first = Array(outputs)
            count = first.map { _ in 1 }
            fixed = first.map { _ in 1 << precisionBits }
            return
        }
        let scale = Double(in1 - in0) / Double(outSize)
        let filterScale = max(scale, 1)  // averages over all that is left out: antialiasing
        let support = reach(kernel) * filterScale
        size = Int(support.rounded(.up)) * 2 + 1
        for output in outputs {
            let centre = Double(in0) + (Double(output) + 0.5) * scale
            let begin = max(0, Int(centre - support + 0.5))
            let number = min(inSize, Int(centre + support + 0.5)) - begin
            let values = (0..<number).map { value(kernel, (Double($0 + begin) - centre + 0.5) * (1 / filterScale)) }
            let sum = values.reduce(0, +)
            first.append(begin)
            count.append(number)
            var row = [Int](repeating: 0, count: size)
            for (k, value) in values.enumerated() {
                let share = (sum == 0 ? value : value / sum) * Double(1 << precisionBits)
                row[k] = Int(share + (share < 0 ? -0.5 : 0.5))
            }
            fixed.append(contentsOf: row)
        }
    }

    var used: Range<Int> { first.min()!..<zip(first, count).map { $0 + $1 }.max()! }
}

private func reach(_ kernel: String) -> Double {
    switch kernel {
    case "bilinear": return 1
    case "bicubic": return 2
    case "lanczos": return 3
    default: fatalError("unknown interpolation \(kernel)")
    }
}

private func value(_ kernel: String, _ distance: Double) -> Double {
    let x = abs(distance)
    switch kernel {
    case "bilinear": return max(0, 1 - x)
    case "bicubic": return x < 1 ? (1.5 * x - 2.5) * x * x + 1 : x < 2 ? (((x - 5) * x + 8) * x - 4) * -0.5 : 0
    default: return distance >= -3 && distance < 3 ? sinc(distance) * sinc(distance / 3) : 0
    }
}

private func sinc(_ x: Double) -> Double { x == 0 ? 1 : sin(x * .pi) / (x * .pi) }

/// The input pixel of each output; summed step by step, as Pillow does, for sums round otherwise than products.
private func nearest(_ in0: Float, _ in1: Float, _ outSize: Int, _ inSize: Int) -> [Int] {
    let step = Double(in1 - in0) / Double(outSize)
    var at = Double(in0) + step * 0.5
    return (0..<outSize).map { _ in
        defer { at += step }
        return min(inSize - 1, Int(at))
    }
}
