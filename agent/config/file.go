package config

import (
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/parser"
	"github.com/goccy/go-yaml/token"
)

// fileBytesMax is far more than all settings take.
const fileBytesMax = 64 << 10

const wantMapping = "one mapping of names to values"

// fileReader reads the settings of a YAML file. It works on the syntax tree, because every value is to keep its place, and
// because what a decoder would understand by itself (anchors, merges, tags, numbers in other notations) is refused.
type fileReader struct {
	name     string
	settings []setting
	found    map[string]source
}

// parseFile returns the values that stand in a file. Every error is an [*Error].
func parseFile(name string, content []byte, settings []setting) (map[string]source, error) {
	r := &fileReader{name: name, settings: settings, found: make(map[string]source)}
	if len(content) > fileBytesMax {
		return nil, &Error{Place: name, Seen: fmt.Sprintf("%d bytes", len(content)), Want: fmt.Sprintf("at most %d", fileBytesMax)}
	}
	file, err := parser.ParseBytes(content, 0)
	if err != nil {
		return nil, r.syntax(err)
	}
	documents := 0
	for _, document := range file.Docs {
		if document.Body == nil {
			continue // only comments
		}
		if documents++; documents > 1 {
			return nil, r.fail(document.Body.GetToken(), "a second document", wantMapping)
		}
		if err := r.mapping(document.Body); err != nil {
			return nil, err
		}
	}
	return r.found, nil
}

// syntax makes one line of the parser's error, whose message shows the source.
func (r *fileReader) syntax(err error) error {
	if syntax, ok := errors.AsType[*yaml.SyntaxError](err); ok {
		return r.fail(syntax.GetToken(), oneLine(errors.New(syntax.GetMessage())).Error(), "YAML")
	}
	first, _, _ := strings.Cut(err.Error(), "\n")
	return &Error{Place: r.name, Seen: first, Want: "YAML"}
}

func (r *fileReader) place(at *token.Token) string {
	if at == nil || at.Position == nil {
		return r.name
	}
	return fmt.Sprintf("%s:%d:%d", r.name, at.Position.Line, at.Position.Column)
}

func (r *fileReader) fail(at *token.Token, seen, want string) error {
	return &Error{Place: r.place(at), Seen: seen, Want: want}
}

func (r *fileReader) mapping(body ast.Node) error {
	switch node := body.(type) {
	case *ast.MappingNode:
		for _, entry := range node.Values {
			if err := r.entry(entry); err != nil {
				return err
			}
		}
		return nil
	case *ast.MappingValueNode:
		return r.entry(node)
	case *ast.NullNode:
		return nil
	default:
		return r.fail(body.GetToken(), describe(body), wantMapping)
	}
}

func (r *fileReader) entry(entry *ast.MappingValueNode) error {
	at := entry.Key.GetToken()
	key, ok := scalar(entry.Key)
	if !ok || entry.Key.IsMergeKey() {
		return r.fail(at, "a key that is not a plain name", r.names())
	}
	s := r.setting(key)
	if s == nil {
		return r.fail(at, "unknown key "+quote(key), r.names())
	}
	if earlier, twice := r.found[key]; twice {
		return r.fail(at, fmt.Sprintf("%s again, after %s", quote(key), strings.TrimSuffix(earlier.place, ": "+key)), "it once")
	}
	value, err := r.value(s, entry.Value)
	if err != nil {
		return err
	}
	r.found[key] = source{value, r.place(entry.Value.GetToken()) + ": " + key}
	return nil
}

// value returns a scalar, or the parts of a list joined by commas where the setting may be one.
func (r *fileReader) value(s *setting, node ast.Node) (string, error) {
	if value, ok := scalar(node); ok {
		return value, nil
	}
	list, ok := node.(*ast.SequenceNode)
	if !ok || !s.list || len(list.Values) == 0 {
		wanted := "a plain value for " + s.name
		if s.list {
			wanted += ", or a list of them"
		}
		return "", r.fail(node.GetToken(), describe(node), wanted)
	}
	parts := make([]string, len(list.Values))
	for i, item := range list.Values {
		if parts[i], ok = scalar(item); !ok {
			return "", r.fail(item.GetToken(), describe(item), "a plain value in the list of "+s.name)
		}
	}
	return strings.Join(parts, ","), nil
}

func (r *fileReader) setting(name string) *setting {
	for i := range r.settings {
		if r.settings[i].name == name {
			return &r.settings[i]
		}
	}
	return nil
}

// names lists what a key may be.
func (r *fileReader) names() string {
	names := make([]string, len(r.settings))
	for i, s := range r.settings {
		names[i] = s.name
	}
	return "one of " + strings.Join(names, ", ")
}

// scalar returns the text of a plain or quoted value as it stands in the file: 0x10 and yes are not what other notations
// make of them.
func scalar(node ast.Node) (string, bool) {
	switch node := node.(type) {
	case *ast.StringNode:
		return node.Value, true
	case *ast.IntegerNode, *ast.FloatNode, *ast.BoolNode:
		return node.GetToken().Value, true
	default:
		return "", false
	}
}

// describe names a node that is not what it should be.
func describe(node ast.Node) string {
	switch node := node.(type) {
	case *ast.NullNode:
		return "no value"
	case *ast.MappingNode, *ast.MappingValueNode:
		return "a mapping"
	case *ast.SequenceNode:
		return "a list of " + strconv.Itoa(len(node.Values))
	default:
		return "a " + strings.ToLower(node.Type().String())
	}
}
