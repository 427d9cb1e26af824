@file:Suppress("UNUSED_PARAMETER")

package ai.onnxruntime

import fakes.broken
import fakes.note
import java.io.File
import java.nio.FloatBuffer

class OrtException(message: String) : Exception(message)

class OrtEpDevice(val epName: String)

class TensorInfo(val shape: LongArray)

class OnnxTensor(val floatBuffer: FloatBuffer, val info: TensorInfo) : AutoCloseable {
    override fun close() = Unit

    companion object {
        fun createTensor(environment: OrtEnvironment, values: FloatBuffer, shape: LongArray) =
            OnnxTensor(values, TensorInfo(shape))
    }
}

class OrtSession(private val path: String) : AutoCloseable {
    class SessionOptions : AutoCloseable {
        val entries = mutableMapOf<String, String>()
        var devices: List<OrtEpDevice> = listOf()

        fun setIntraOpNumThreads(threads: Int) = note("threads $threads")

        fun addConfigEntry(key: String, value: String) {
            entries[key] = value
        }

        fun addExecutionProvider(devices: List<OrtEpDevice>, options: Map<String, String>) {
            this.devices = devices
            note("provider ${devices.single().epName} $options")
        }

        override fun close() = Unit
    }

    class Result(private val tensors: List<OnnxTensor>) : AutoCloseable {
        operator fun get(index: Int): Any = tensors[index]

        override fun close() = Unit
    }

    fun run(feeds: Map<String, OnnxTensor>) = Result(feeds.values.map { OnnxTensor(it.floatBuffer.duplicate(), it.info) })

    override fun close() = note("close")
}

class OrtEnvironment private constructor() {
    val epDevices get() = if ("devices" in broken) listOf() else listOf(OrtEpDevice("QNNExecutionProvider"))

    fun setTelemetry(on: Boolean) = note("telemetry $on")

    fun registerExecutionProviderLibrary(name: String, path: String) {
        note("register $name $path")
        if ("plugin" in broken) throw OrtException("library not found")
    }

    fun createSession(path: String, options: OrtSession.SessionOptions): OrtSession {
        val kind = File(path).name
        note("open $kind ${options.entries.filterKeys { !it.startsWith("ep.context_file") }.toSortedMap()}")
        val npu = options.devices.isNotEmpty()
        if (npu && "npu" in broken) throw OrtException("the processor takes no model")
        if ("compiled" in kind && "compiled" in broken) throw OrtException("compiled with other libraries")
        options.entries["ep.context_file_path"]?.let { File(it).writeText("compiled") }
        check(File(path).isFile)
        return OrtSession(path)
    }

    companion object {
        init {
            note("OrtEnvironment is loaded")
        }

        fun getEnvironment() = OrtEnvironment()
    }
}
