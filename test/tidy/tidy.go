// Package tidy holds the house rules that no linter knows: which room may import which, what pure rooms keep away from, how
// long a file may be, and what no file of the repository says.
//
//	for _, f := range tidy.Check(os.DirFS(root), module) {
//		t.Error(f)
//	}
//
// [Check] reads a tree of files and nothing else. The table of rooms is in table.go; whoever moves a room changes it in the
// same commit.
package tidy

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path"
	"slices"
	"strings"
)

// Limits on the size of what one has to read at once. The style asks for about 600 and about 70 lines; these leave room for a
// table that belongs together.
const (
	fileLinesMax     = 620
	functionLinesMax = 100
)

// Finding is one broken rule.
type Finding struct {
	Place string // file, or file:line, or folder
	Rule  string
}

// String gives "place: rule".
func (f Finding) String() string { return f.Place + ": " + f.Rule }

// Check returns what breaks the rules in a tree of the given module, in order of places. The error is one of reading it.
func Check(tree fs.FS, module string) ([]Finding, error) {
	c := &checker{tree: tree, module: module, fset: token.NewFileSet(), documented: make(map[string]bool)}
	if err := fs.WalkDir(tree, ".", c.visit); err != nil {
		return nil, fmt.Errorf("check %s: %w", module, err)
	}
	for folder, ok := range c.documented {
		if !ok {
			c.report(folder, "no package comment")
		}
	}
	slices.SortFunc(c.findings, func(a, b Finding) int {
		return strings.Compare(a.Place+a.Rule, b.Place+b.Rule)
	})
	return c.findings, nil
}

type checker struct {
	tree       fs.FS
	module     string
	fset       *token.FileSet
	documented map[string]bool // folder with a package -> whether one of its files has the package comment
	findings   []Finding
}

func (c *checker) report(place, format string, args ...any) {
	c.findings = append(c.findings, Finding{Place: place, Rule: fmt.Sprintf(format, args...)})
}

// visit checks one file.
func (c *checker) visit(name string, entry fs.DirEntry, err error) error {
	if err != nil {
		return err
	}
	if entry.IsDir() {
		if ignored(name) {
			return fs.SkipDir
		}
		return nil
	}
	info, err := entry.Info()
	if err != nil || !info.Mode().IsRegular() || ignored(name) {
		return err
	}
	content, err := fs.ReadFile(c.tree, name)
	if err != nil {
		return err
	}
	c.text(name, content)
	if strings.HasSuffix(name, ".go") && !strings.Contains("/"+name, "/testdata/") {
		return c.source(name, content)
	}
	return nil
}

// ignored tells what is no part of the repository: what .gitignore names, and folders of tools.
func ignored(name string) bool {
	base := path.Base(name)
	switch {
	case name == ".", base == ".ci", base == ".gitignore", strings.HasPrefix(base, ".golangci."):
		return false
	case strings.HasPrefix(base, "."), name == "varve", name == "varve-data", base == "node_modules", base == "__pycache__":
		return true
	}
	return slices.Contains([]string{".test", ".prof", ".pprof"}, path.Ext(base))
}

// source checks one Go file.
func (c *checker) source(name string, content []byte) error {
	file, err := parser.ParseFile(c.fset, name, content, parser.ParseComments)
	if err != nil {
		return err
	}
	folder := path.Dir(name)
	c.documented[folder] = c.documented[folder] || file.Doc != nil
	if lines := strings.Count(string(content), "\n"); lines > fileLinesMax {
		c.report(name, "%d lines, want at most about 600", lines)
	}
	if vague := strings.TrimSuffix(file.Name.Name, "_test"); slices.Contains(vagueNames, vague) {
		c.report(name, "package %s: the name does not say what is inside", vague)
	}
	room := roomOf(folder)
	if room == nil {
		c.report(folder, "a folder without a row in test/tidy/table.go")
		return nil
	}
	test := strings.HasSuffix(name, "_test.go")
	for _, spec := range file.Imports {
		imported := strings.Trim(spec.Path.Value, `"`)
		if rule := c.importRule(room, folder, imported, test); rule != "" {
			c.report(c.place(spec.Pos()), "%s", rule)
		}
	}
	c.statements(file, room.Pure && !test, test)
	return nil
}

func (c *checker) place(at token.Pos) string {
	position := c.fset.Position(at)
	return fmt.Sprintf("%s:%d", position.Filename, position.Line)
}

// statements checks what a file's code does.
func (c *checker) statements(file *ast.File, pure, test bool) {
	ast.Inspect(file, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.FuncDecl:
			if n.Body == nil || test { // a test's table belongs together
				break
			}
			lines := c.fset.Position(n.Body.End()).Line - c.fset.Position(n.Body.Pos()).Line
			if lines > functionLinesMax {
				c.report(c.place(n.Pos()), "func %s has %d lines, want about 70", n.Name.Name, lines)
			}
		case *ast.GoStmt:
			if pure {
				c.report(c.place(n.Pos()), "a pure room starts a goroutine")
			}
		case *ast.ChanType, *ast.SelectStmt:
			if pure {
				c.report(c.place(n.Pos()), "a pure room uses a channel")
			}
		case *ast.SelectorExpr:
			x, ok := n.X.(*ast.Ident)
			switch {
			case !ok:
			case pure && x.Name == "time" && slices.Contains(clocks, n.Sel.Name):
				c.report(c.place(n.Pos()), "a pure room uses time.%s: the time comes from the caller", n.Sel.Name)
			case test && strings.HasPrefix(n.Sel.Name, "Skip") && slices.Contains([]string{"t", "b", "f", "tb"}, x.Name):
				c.report(c.place(n.Pos()), "%s.%s: a test runs or does not exist", x.Name, n.Sel.Name)
			}
		}
		return true
	})
}
