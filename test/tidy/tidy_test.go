package tidy

import (
	"os"
	"slices"
	"strings"
	"testing"
	"testing/fstest"
)

const module = "github.com/varve-io/varve"

// TestRepository holds the rules in this repository.
func TestRepository(t *testing.T) {
	findings, err := Check(os.DirFS("../.."), module)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range findings {
		t.Error(f)
	}
}

// TestTable checks that the table speaks of rooms that exist.
func TestTable(t *testing.T) {
	exists := func(pattern string) bool {
		folder := strings.TrimSuffix(strings.TrimSuffix(pattern, "..."), "/")
		if folder == "" {
			return true
		}
		_, err := os.Stat("../../" + folder)
		return err == nil
	}
	for _, room := range rooms {
		if !exists(room.Path) {
			t.Errorf("a row for %s, which does not exist", room.Path)
		}
		for _, other := range room.Rooms {
			if !exists(other) {
				t.Errorf("%s may import %s, which does not exist", room.Path, other)
			}
		}
	}
	for library, at := range homes {
		for _, home := range at {
			if !exists(home) {
				t.Errorf("%s has a home in %s, which does not exist", library, home)
			}
		}
	}
}

// TestFindings breaks each rule once, in a tree that breaks no other.
func TestFindings(t *testing.T) {
	code := func(parts ...string) string {
		return "// Package p is a test.\npackage p\n\n" + strings.Join(parts, "\n") + "\n"
	}
	imports := func(what string) string { return code(`import _ "` + what + `"`) }
	for name, c := range map[string]struct {
		file, content string
		want          string // place: start of the rule; empty for none
	}{
		"fine":                    {"wal/frame/frame.go", imports("hash/crc32"), ""},
		"order of rooms":          {"protocol/wire/a.go", imports(module + "/agent/api"), "protocol/wire/a.go:4: may not import agent/api"},
		"middle rooms meet":       {"wal/a.go", imports(module + "/objectstore"), "wal/a.go:4: may not import objectstore"},
		"middle meet in tests":    {"wal/a_test.go", imports(module + "/coordinator"), "wal/a_test.go:4: may not import coordinator"},
		"product needs tests":     {"agent/a.go", imports(module + "/test/check"), "agent/a.go:4: may not import test/check"},
		"main imports test":       {"main.go", imports(module + "/test/servers"), "main.go:4: may not import test/servers"},
		"main imports the load":   {"main.go", imports(module + "/test/bench/load"), ""},
		"pure imports shell":      {"wal/quorum/a.go", imports(module + "/wal/disk"), "wal/quorum/a.go:4: a pure room imports wal/disk, which is not pure"},
		"pure imports sync":       {"protocol/a.go", imports("sync"), "protocol/a.go:4: a pure room imports sync"},
		"pure imports log":        {"agent/partition/a.go", imports("log/slog"), "agent/partition/a.go:4: a pure room imports log/slog"},
		"pure imports a library":  {"protocol/a.go", imports("example.com/x"), "protocol/a.go:4: a pure room imports example.com/x"},
		"pure test imports sync":  {"protocol/a_test.go", imports("sync"), ""},
		"pure goroutine":          {"coordinator/group/a.go", code("func f() { go f() }"), "coordinator/group/a.go:4: a pure room starts a goroutine"},
		"pure channel":            {"coordinator/group/a.go", code("var c chan int"), "coordinator/group/a.go:4: a pure room uses a channel"},
		"pure clock":              {"coordinator/group/a.go", code(`import "time"`, "var now = time.Now()"), "coordinator/group/a.go:5: a pure room uses time.Now"},
		"pure duration":           {"coordinator/group/a.go", code(`import "time"`, "var second = time.Second"), ""},
		"os":                      {"agent/flush/a.go", imports("os"), "agent/flush/a.go:4: os has its home elsewhere"},
		"os at home":              {"wal/disk/a.go", imports("os"), ""},
		"os/exec":                 {"wal/disk/a.go", imports("os/exec"), "wal/disk/a.go:4: os/exec has its home elsewhere"},
		"net":                     {"agent/api/a.go", imports("net"), "agent/api/a.go:4: net has its home elsewhere"},
		"etcd's client":           {"agent/a.go", imports("go.etcd.io/etcd/client/v3"), "agent/a.go:4: go.etcd.io/etcd/client/v3 has its home elsewhere"},
		"etcd's server":           {"coordinator/etcd/a.go", imports("go.etcd.io/etcd/server/v3/embed"), "coordinator/etcd/a.go:4: go.etcd.io/etcd/server/v3/embed has its home elsewhere"},
		"S3 client":               {"objectstore/minio/a.go", imports("github.com/aws/aws-sdk-go-v2/aws"), "objectstore/minio/a.go:4: github.com/aws/aws-sdk-go-v2/aws has its home elsewhere"},
		"Kafka client":            {"agent/api/a.go", imports("github.com/twmb/franz-go/pkg/kgo"), "agent/api/a.go:4: github.com/twmb/franz-go/pkg/kgo has its home elsewhere"},
		"a room without a row":    {"wal/other/a.go", code(), "wal/other: a folder without a row"},
		"no package comment":      {"agent/api/a.go", "package api\n", "agent/api: no package comment"},
		"vague name":              {"agent/api/a.go", "// Package util is.\npackage util\n", "agent/api/a.go: package util: the name"},
		"long file":               {"agent/api/a.go", code(strings.Repeat("\n", fileLinesMax)), "agent/api/a.go: 624 lines"},
		"long function":           {"agent/api/a.go", code("func f() {" + strings.Repeat("\n", functionLinesMax+1) + "}"), "agent/api/a.go:4: func f has 101 lines"},
		"skipped test":            {"agent/api/a_test.go", code(`import "testing"`, `func TestA(t *testing.T) { t.S`+`kip() }`), "agent/api/a_test.go:5: t.Skip: a test runs"},
		"unfinished":              {"agent/DESIGN.md", "a\nTO" + "DO: b\n", "agent/DESIGN.md:2: unfinished"},
		"unfinished in testdata":  {"agent/testdata/a", "FIX" + "ME\n", "agent/testdata/a:1: unfinished"},
		"a machine's path":        {"test/run", "cd /wo" + "rk/main\n", "test/run:1: a path of somebody's machine"},
		"a path below":            {"test/run", "cd test/wo" + "rk/main\n", ""},
		"a registry":              {"test/run", "export GOPRO" + "XY=direct\n", "test/run:1: the host of a package registry"},
		"a registry in a lock":    {"test/js/package-lock.json", `"resolved": "https://registry.np` + `mjs.org/a"`, "test/js/package-lock.json:1: the host of a package registry"},
		"a registry, binary":      {"agent/testdata/b", "\x00 registry.np" + "mjs.org", ""},
		"what is not the project": {".git/a", "TO" + "DO\n", ""},
		"data of a run":           {"varve-data/wal/a", "TO" + "DO\n", ""},
	} {
		t.Run(name, func(t *testing.T) {
			findings, err := Check(fstest.MapFS{c.file: {Data: []byte(c.content)}}, module)
			if err != nil {
				t.Fatal(err)
			}
			found := make([]string, len(findings))
			for i, f := range findings {
				found[i] = f.String()
			}
			if c.want == "" && len(found) == 0 || len(found) == 1 && c.want != "" && strings.HasPrefix(found[0], c.want) {
				return
			}
			t.Errorf("found %q, want %q", found, c.want)
		})
	}
}

// TestUnreadable checks that source that does not parse is no tidy source.
func TestUnreadable(t *testing.T) {
	_, err := Check(fstest.MapFS{"agent/a.go": {Data: []byte("package")}}, module)
	if err == nil {
		t.Error("checked a file that does not parse")
	}
}

// TestNoRowIsHidden looks for rows that never match.
func TestNoRowIsHidden(t *testing.T) {
	for i, room := range rooms {
		hidden := slices.ContainsFunc(rooms[:i], func(earlier Room) bool { return matches(earlier.Path, strings.TrimSuffix(room.Path, "/...")) })
		if hidden {
			t.Errorf("an earlier row hides that of %s", room.Path)
		}
	}
}
