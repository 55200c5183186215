package admin

import "runtime/debug"

// ProgramVersion is the version that the linker set, else the module's, else "unknown".
func ProgramVersion(linked string) string {
	if linked != "" {
		return linked
	}
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" {
		return info.Main.Version
	}
	return "unknown"
}
