@file:Suppress("UNUSED_PARAMETER")

package android.content

import java.io.File

class Assets(private val folder: File) {
    fun open(name: String) = File(folder, name).inputStream().also { fakes.note("read $name") }
}

class ApplicationInfo(val nativeLibraryDir: String)

class Context(root: File, assets: File) {
    val assets = Assets(assets)
    val noBackupFilesDir = File(root, "no_backup")
    val applicationInfo = ApplicationInfo("/lib")
}
