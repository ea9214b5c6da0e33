// A bundle of handlens for LiteRT on Android: photos in, names and probabilities out.
//
// build.gradle.kts:  implementation("com.google.ai.edge.litert:litert:1.4.0")   and   minSdk = 28
//                    android { androidResources { noCompress += "tflite" } }
// assets/flowers/:   what `unzip flowers-litert.zip` gives: bundle.json and model.tflite

package handlens

import android.content.ContentResolver
import android.content.Context
import android.graphics.Bitmap
import android.graphics.ColorSpace
import android.graphics.ImageDecoder
import android.net.Uri
import java.nio.ByteBuffer
import java.nio.ByteOrder
import kotlin.math.exp
import kotlin.math.ln
import kotlin.math.max
import kotlin.math.min
import org.json.JSONObject
import org.tensorflow.lite.Interpreter

class Guess(val name: String, val probability: Float)

/** guesses: best first.  unknown: whether the photo is like none of the classes. */
class Answer(val guesses: List<Guess>, val unknown: Boolean)

/** Not for several threads at once; loading takes a while, so do it off the main thread, as every call. */
class Classifier(context: Context, folder: String = "flowers") : AutoCloseable {
    private val manifest = JSONObject(context.assets.open("$folder/bundle.json").use { it.readBytes().decodeToString() })
    private val classes = manifest.getJSONArray("classes").let { names -> List(names.length()) { names.getString(it) } }
    private val rejection: JSONObject? = manifest.optJSONObject("rejection")
    private val contract = manifest.getJSONObject("preprocess").let {
        Contract(it.getInt("image_px"), it.getString("resize"), it.getInt("resize_px"), it.getString("interpolation"))
    }
    private val interpreter: Interpreter

    init {
        require(manifest.getInt("format_version") == 1) { "a bundle of another format" }
        require(manifest.getString("runtime") == "litert") { "a bundle for another runtime" }
        val bytes = context.assets.open("$folder/model.tflite").use { it.readBytes() }
        val model = ByteBuffer.allocateDirect(bytes.size).order(ByteOrder.nativeOrder()).put(bytes)
        interpreter = Interpreter(model, Interpreter.Options().setNumThreads(min(4, Runtime.getRuntime().availableProcessors())))
    }

    /** The answer to a photo that the user picked or took. */
    fun classify(resolver: ContentResolver, photo: Uri, top: Int = 5): Answer =
        classify(ImageDecoder.decodeBitmap(ImageDecoder.createSource(resolver, photo)) { decoder, info, _ ->
            // ImageDecoder turns the photo upright by its EXIF orientation.
            decoder.allocator = ImageDecoder.ALLOCATOR_SOFTWARE // getPixels needs pixels in memory
            decoder.setTargetColorSpace(ColorSpace.get(ColorSpace.Named.SRGB))
            // Far larger JPEGs are decoded smaller, the shorter side still twice what is needed: as Python does it.
            // So is all else that is large, which Python decodes whole: it may not fit into an app's memory.
            val px = if (contract.resize == "crop") contract.resizePx else contract.imagePx
            var sample = 1
            while (sample < 8 && min(info.size.width, info.size.height) / (2 * sample) >= 2 * px) sample *= 2
            val isJpeg = info.mimeType == "image/jpeg"
            val large = info.size.width.toLong() * info.size.height > 16_000_000
            if ((isJpeg || large) && contract.interpolation != "nearest") decoder.setTargetSampleSize(sample)
        }, top)

    /** The answer to an upright bitmap in memory, such as a camera's frame. */
    fun classify(bitmap: Bitmap, top: Int = 5): Answer {
        val argb = IntArray(bitmap.width * bitmap.height)
        bitmap.getPixels(argb, 0, bitmap.width, 0, 0, bitmap.width, bitmap.height)
        val photos = ByteBuffer.allocateDirect(3 * contract.imagePx * contract.imagePx).order(ByteOrder.nativeOrder())
        photos.put(fit(argb, bitmap.width, bitmap.height, contract)).rewind()
        val probabilities = Array(1) { FloatArray(classes.size) }
        val logits = Array(1) { FloatArray(classes.size) }
        // Scaling, normalisation and softmax are inside the model.
        interpreter.runSignature(mapOf("photos" to photos), mapOf("probabilities" to probabilities, "logits" to logits))
        val best = classes.indices.sortedByDescending { probabilities[0][it] }.take(top)
        return Answer(best.map { Guess(classes[it], probabilities[0][it]) }, isUnknown(probabilities[0], logits[0]))
    }

    private fun isUnknown(probabilities: FloatArray, logits: FloatArray): Boolean {
        val found = rejection ?: return false
        val score = if (found.getString("kind") == "energy") {
            var largest = Double.NEGATIVE_INFINITY
            for (logit in logits) largest = max(largest, logit.toDouble())
            largest + ln(logits.sumOf { exp(it - largest) })
        } else {
            probabilities.max().toDouble()
        }
        return score < found.getDouble("threshold")
    }

    override fun close() = interpreter.close()
}
