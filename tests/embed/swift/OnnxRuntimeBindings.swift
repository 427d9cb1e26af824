// Stands in for OnnxRuntimeBindings where there is none: what generated code uses of it, with the types of its Swift interface.
// Its only model is that of tests/embed/embed_texts.py, which gives each token its id, mask, segment and position as a vector.
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
public class ORTTensorTypeAndShapeInfo {
  public let elementType: ORTTensorElementDataType
  public let shape: [NSNumber]
  init(_ elementType: ORTTensorElementDataType, _ shape: [NSNumber]) { (self.elementType, self.shape) = (elementType, shape) }
}
public class ORTValue {
  private let data: NSMutableData
  private let info: ORTTensorTypeAndShapeInfo
  public init(tensorData: NSMutableData, elementType: ORTTensorElementDataType, shape: [NSNumber]) throws {
    (data, info) = (tensorData, ORTTensorTypeAndShapeInfo(elementType, shape))
  }
  public func tensorData() throws -> NSMutableData { data }
  public func tensorTypeAndShapeInfo() throws -> ORTTensorTypeAndShapeInfo { info }
}
public class ORTSession {
  public init(env: ORTEnv, modelPath: String, sessionOptions: ORTSessionOptions?) throws {}
  public func run(withInputs: [String: ORTValue], outputNames: Set<String>, runOptions: ORTRunOptions?) throws -> [String: ORTValue] {
    let parts = try ["ids", "mask", "segments", "positions"].compactMap { try (withInputs[$0] ?? withInputs["attention_\($0)"]).map { (try $0.tensorData() as Data, try $0.tensorTypeAndShapeInfo()) } }
    guard parts.count == 4, parts.allSatisfy({ $0.1.elementType == .int64 }) else { return [:] }
    let numbers = parts.map { part in part.0.withUnsafeBytes { [Int64]($0.bindMemory(to: Int64.self)) } }
    let vectors = numbers[0].indices.flatMap { at in numbers.map { Float($0[at]) } }
    let data = vectors.withUnsafeBytes { NSMutableData(bytes: $0.baseAddress, length: $0.count) }
    return ["vectors": try ORTValue(tensorData: data, elementType: .float, shape: parts[0].1.shape + [4])]
  }
}
