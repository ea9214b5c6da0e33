// A bundle of handlens for Core ML: photos in, names and probabilities out. iOS 15, macOS 12 and later.
//
// Drag what `unzip flowers-coreml.zip` gives into Xcode: bundle.json, and model.mlpackage, which Xcode compiles.

import CoreGraphics
import CoreML
import CoreVideo
import Foundation
import ImageIO

struct Guess {
    let name: String
    let probability: Double
}

/// guesses: best first.  unknown: whether the photo is like none of the classes.
struct Answer {
    let guesses: [Guess]
    let unknown: Bool
}

enum Trouble: Error {
    case missing(String)
    case otherBundle
    case unreadablePhoto
    case noMemory
}

/// Load and call it off the main thread.
final class Classifier {
    private struct Rejection: Decodable {
        let kind: String
        let threshold: Double
    }

    private struct Manifest: Decodable {
        let format_version: Int
        let runtime: String
        let preprocess: Contract
        let rejection: Rejection?
    }

    private let manifest: Manifest
    private let model: MLModel
    private var contract: Contract { manifest.preprocess }

    init(in bundle: Bundle = .main) throws {
        guard let json = bundle.url(forResource: "bundle", withExtension: "json") else { throw Trouble.missing("bundle.json") }
        guard let compiled = bundle.url(forResource: "model", withExtension: "mlmodelc") else {
            throw Trouble.missing("model.mlpackage")
        }
        manifest = try JSONDecoder().decode(Manifest.self, from: Data(contentsOf: json))
        guard manifest.format_version == 1, manifest.runtime == "coreml" else { throw Trouble.otherBundle }
        model = try MLModel(contentsOf: compiled)
    }

    /// The answer to a photo's file: JPEG, HEIC, PNG and whatever else the system reads.
    func classify(_ file: Data, top: Int = 5) throws -> Answer {
        guard let source = CGImageSourceCreateWithData(file as CFData, nil),
            let facts = CGImageSourceCopyPropertiesAtIndex(source, 0, nil) as? [CFString: Any],
            let width = facts[kCGImagePropertyPixelWidth] as? Int,
            let height = facts[kCGImagePropertyPixelHeight] as? Int
        else { throw Trouble.unreadablePhoto }
        // Far larger JPEGs are decoded smaller, the shorter side still twice what is needed: as Python does it.
        let isJPEG = CGImageSourceGetType(source) as String? == "public.jpeg"
        let px = contract.resize == "crop" ? contract.resize_px : contract.image_px
        var sample = 1
        while isJPEG, contract.interpolation != "nearest", sample < 8, min(width, height) / (2 * sample) >= 2 * px { sample *= 2 }
        let options: [CFString: Any] = [
            kCGImageSourceCreateThumbnailFromImageAlways: true,
            kCGImageSourceCreateThumbnailWithTransform: true,  // upright, by its EXIF orientation
            kCGImageSourceThumbnailMaxPixelSize: max(width, height) / sample,
        ]
        guard let image = CGImageSourceCreateThumbnailAtIndex(source, 0, options as CFDictionary) else {
            throw Trouble.unreadablePhoto
        }
        return try classify(image, top: top)
    }

    /// The answer to an upright image in memory, such as a camera's frame.
    func classify(_ image: CGImage, top: Int = 5) throws -> Answer {
        let buffer = try pixelBuffer(fit(pixels(of: image), contract))
        let input = try MLDictionaryFeatureProvider(dictionary: ["photos": MLFeatureValue(pixelBuffer: buffer)])
        // Scaling, normalisation and softmax are inside the model.
        let found = try model.prediction(from: input)
        guard let named = found.featureValue(for: "probabilities")?.dictionaryValue,
            let logits = found.featureValue(for: "logits")?.multiArrayValue
        else { throw Trouble.otherBundle }
        let guesses = named.compactMap { key, value in (key as? String).map { Guess(name: $0, probability: value.doubleValue) } }
            .sorted { $0.probability > $1.probability }
        let scores = (0..<logits.count).map { logits[$0].doubleValue }
        return Answer(guesses: Array(guesses.prefix(top)), unknown: isUnknown(guesses[0].probability, scores))
    }

    private func isUnknown(_ greatest: Double, _ logits: [Double]) -> Bool {
        guard let rejection = manifest.rejection else { return false }
        if rejection.kind != "energy" { return greatest < rejection.threshold }
        let largest = logits.max() ?? 0
        return largest + log(logits.reduce(0) { $0 + exp($1 - largest) }) < rejection.threshold
    }

    /// RGB in sRGB; what is transparent is laid over white.
    private func pixels(of image: CGImage) throws -> Pixels {
        let (width, height) = (image.width, image.height)
        var rgba = [UInt8](repeating: 255, count: 4 * width * height)
        let drawn = rgba.withUnsafeMutableBytes { memory -> Bool in
            guard
                let context = CGContext(
                    data: memory.baseAddress, width: width, height: height, bitsPerComponent: 8, bytesPerRow: 4 * width,
                    space: CGColorSpace(name: CGColorSpace.sRGB)!, bitmapInfo: CGImageAlphaInfo.noneSkipLast.rawValue)
            else { return false }
            context.draw(image, in: CGRect(x: 0, y: 0, width: width, height: height))
            return true
        }
        guard drawn else { throw Trouble.noMemory }
        var rgb = [UInt8](repeating: 0, count: 3 * width * height)
        for pixel in 0..<width * height {
            for channel in 0..<3 { rgb[3 * pixel + channel] = rgba[4 * pixel + channel] }
        }
        return Pixels(rgb: rgb, width: width, height: height)
    }

    private func pixelBuffer(_ rgb: [UInt8]) throws -> CVPixelBuffer {
        let px = contract.image_px
        var made: CVPixelBuffer?
        CVPixelBufferCreate(kCFAllocatorDefault, px, px, kCVPixelFormatType_32BGRA, nil, &made)
        guard let buffer = made else { throw Trouble.noMemory }
        CVPixelBufferLockBaseAddress(buffer, [])
        defer { CVPixelBufferUnlockBaseAddress(buffer, []) }
        guard let base = CVPixelBufferGetBaseAddress(buffer) else { throw Trouble.noMemory }
        let stride = CVPixelBufferGetBytesPerRow(buffer)
        for y in 0..<px {
            let row = base.advanced(by: stride * y).assumingMemoryBound(to: UInt8.self)
            for x in 0..<px {
                let from = 3 * (px * y + x)
                row[4 * x] = rgb[from + 2]
                row[4 * x + 1] = rgb[from + 1]
                row[4 * x + 2] = rgb[from]
                row[4 * x + 3] = 255
            }
        }
        return buffer
    }
}
