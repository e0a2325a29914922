package tidy

import (
	"path"
	"slices"
	"strings"
)

// roomOf returns the row of a folder, or nil.
func roomOf(folder string) *Room {
	for i := range rooms {
		if matches(rooms[i].Path, folder) {
			return &rooms[i]
		}
	}
	return nil
}

// matches reports whether a folder is what a pattern of the table means.
func matches(pattern, folder string) bool {
	top, below := strings.CutSuffix(pattern, "...")
	if !below {
		return pattern == folder
	}
	top = strings.TrimSuffix(top, "/")
	return top == "" || folder == top || strings.HasPrefix(folder, top+"/")
}

func matchesAny(patterns []string, folder string) bool {
	return slices.ContainsFunc(patterns, func(p string) bool { return matches(p, folder) })
}

// importRule returns the rule that an import breaks, or nothing. Tests are bound by the order of rooms, but may use any
// library.
func (c *checker) importRule(room *Room, folder, imported string, test bool) string {
	internal, ok := c.internal(imported)
	switch {
	case ok && !mayImport(room, folder, internal):
		return "may not import " + internal
	case ok && room.Pure && !test && !isPure(internal):
		return "a pure room imports " + internal + ", which is not pure"
	case ok || test:
		return ""
	case room.Pure && isStandard(imported) && !slices.Contains(pureLibrary, imported):
		return "a pure room imports " + imported
	case room.Pure && !isStandard(imported) && !slices.Contains(room.Libraries, imported):
		return "a pure room imports " + imported + ", which its row does not list"
	case !atHome(folder, imported):
		return imported + " has its home elsewhere"
	}
	return ""
}

// internal returns the folder of a package of this module.
func (c *checker) internal(imported string) (string, bool) {
	if imported == c.module {
		return ".", true
	}
	return strings.CutPrefix(imported, c.module+"/")
}

// mayImport reports whether the order of rooms allows an import.
func mayImport(room *Room, folder, imported string) bool {
	sameTop := folder != "." && topOf(folder) == topOf(imported)
	return sameTop || matchesAny(room.Rooms, imported)
}

func topOf(folder string) string {
	top, _, _ := strings.Cut(folder, "/")
	return top
}

func isPure(folder string) bool {
	room := roomOf(folder)
	return room != nil && room.Pure
}

// isStandard tells the standard library's packages by what they lack: a dot in the first part.
func isStandard(imported string) bool { return !strings.Contains(topOf(imported), ".") }

// atHome reports whether a folder may import a library.
func atHome(folder, imported string) bool {
	if matches("test/...", folder) {
		return true
	}
	for library := imported; library != "."; library = path.Dir(library) {
		if at, ok := homes[library]; ok {
			return matchesAny(at, folder)
		}
	}
	return true
}
