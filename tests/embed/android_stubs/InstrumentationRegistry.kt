// The signatures of androidx.test that generated tests use: androidx comes from Maven only.
package androidx.test.platform.app

object InstrumentationRegistry {
    @JvmStatic
    fun getInstrumentation(): android.app.Instrumentation = throw UnsupportedOperationException()
}
