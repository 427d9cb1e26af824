@file:Suppress("UNUSED_PARAMETER")

package android.util

object Log {
    fun i(tag: String, message: String, error: Throwable): Int = 0.also { fakes.note("info $message: ${error.message}") }

    fun w(tag: String, message: String, error: Throwable): Int = 0.also { fakes.note("warning $message: ${error.message}") }
}
