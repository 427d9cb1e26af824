// Stand-ins for what the module calls, with the same signatures: they note what is called, and fail when told to.
@file:Suppress("UNUSED_PARAMETER")

package fakes

val calls = mutableListOf<String>()

/** What fails: "plugin" (its library), "devices" (there are none), "npu" (every model), "compiled" (what was kept). */
val broken = mutableSetOf<String>()

fun note(call: String) {
    calls += call
}
