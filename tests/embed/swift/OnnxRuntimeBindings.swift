// Stands in for OnnxRuntimeBindings where there is none: what generated code uses of it, with the types of its Swift interface.
import Foundation
public enum ORTLoggingLevel: Int32 { case verbose, info, warning, error, fatal }
public enum ORTTensorElementDataType: Int32 { case undefined, float, int8, uInt8, int32, uInt32, int64, uInt64, string, bool }
public class ORTEnv { public init(loggingLevel: ORTLoggingLevel) throws {} }
public class ORTSessionOptions {
  public init() throws {}
  public func setIntraOpNumThreads(_ n: Int32) throws {}
  public func addConfigEntry(withKey key: String, value: String) throws {}
  public func appendCoreMLExecutionProvider(withOptionsV2 options: [AnyHashable: Any]) throws {}
}
public class ORTRunOptions {}
public class ORTTensorTypeAndShapeInfo { public var elementType: ORTTensorElementDataType { .float }; public var shape: [NSNumber] { [] } }
public class ORTValue {
  public init(tensorData: NSMutableData, elementType: ORTTensorElementDataType, shape: [NSNumber]) throws {}
  public func tensorData() throws -> NSMutableData { NSMutableData() }
  public func tensorTypeAndShapeInfo() throws -> ORTTensorTypeAndShapeInfo { ORTTensorTypeAndShapeInfo() }
}
public class ORTSession {
  public init(env: ORTEnv, modelPath: String, sessionOptions: ORTSessionOptions?) throws {}
  public func run(withInputs: [String: ORTValue], outputNames: Set<String>, runOptions: ORTRunOptions?) throws -> [String: ORTValue] { [:] }
}
