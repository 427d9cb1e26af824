@file:Suppress("UNUSED_PARAMETER")

package android.system

object Os {
    fun setenv(name: String, value: String, overwrite: Boolean) = fakes.note("setenv $name=$value")
}
