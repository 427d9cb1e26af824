// Stands in for CoreGraphics where there is none: what generated code uses of it, with the types of its Swift interface.
import Foundation
public enum CGColorSpaceModel { case rgb, monochrome }
public class CGColorSpace { public static let sRGB = "sRGB"; public init?(name: String) {}; public var model: CGColorSpaceModel { .rgb } }
public enum CGImageAlphaInfo: UInt32 { case none, noneSkipLast }
public class CGImage { public var width: Int { 0 }; public var height: Int { 0 }; public var colorSpace: CGColorSpace? { nil } }
public class CGContext {
  public init?(data: UnsafeMutableRawPointer?, width: Int, height: Int, bitsPerComponent: Int, bytesPerRow: Int, space: CGColorSpace, bitmapInfo: UInt32) {}
  public func draw(_ image: CGImage, in rect: CGRect) {}
}
