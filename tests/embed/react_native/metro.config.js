// The app of the tests: the lines of the generated README, and no start of React Native, which needs a phone.
const { getDefaultConfig, mergeConfig } = require("@react-native/metro-config");

const config = getDefaultConfig(__dirname);
config.resolver.assetExts.push("onnx", "ort", "data", "npy");
module.exports = mergeConfig(config, {
  serializer: { getModulesRunBeforeMainModule: () => [], getPolyfills: () => [] },
});
