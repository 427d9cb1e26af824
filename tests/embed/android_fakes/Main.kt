import android.content.Context
import edgeq.tiny.ModelFiles
import edgeq.tiny.Tiny
import fakes.broken
import fakes.calls
import java.io.File

/** Each line: what was done, and the calls that it led to. One scenario per process: a plugin is registered once. */
fun main(arguments: Array<String>) {
    val context = Context(File(arguments[0]), File(arguments[1]))
    for (step in arguments.drop(2)) {
        calls.clear()
        when {
            step.startsWith("break ") -> broken += step.removePrefix("break ")
            step.startsWith("mend ") -> broken -= step.removePrefix("mend ")
            step == "open" -> Tiny.open(context).use { println("$step: ${it.provider} ${it.run(floatArrayOf(1f, 2f, 3f)).xOut.toList()}") }
            step == "open fallback" -> Tiny.open(context, threads = 2, fallback = true).use { println("$step: ${it.provider}") }
            step == "another model" -> println("$step: ${ModelFiles.path(context, "edgeq/tiny/model", listOf("model.onnx"), "0".repeat(16)).takeLast(27)}")
        }
        calls.forEach { println("  $it") }
    }
    File(arguments[0]).walk().filter { it.isFile }.map { it.name }.sorted().forEach { println("file $it") }
}
