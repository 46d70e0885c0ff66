package api

import (
	"bytes"
	"encoding/json"
	"flag"
	"go/ast"
	"go/doc"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"bocage.dev/bocage"
)

var update = flag.Bool("update", false, "rewrite descriptions.json from the comments of the root package")

// TestDescriptions keeps descriptions.json equal to the doc comments of the words
// that people read and write.
func TestDescriptions(t *testing.T) {
	found := map[string]string{}
	wanted := structNames(bocage.Kinds())
	files, err := filepath.Glob("../*.go")
	if err != nil || len(files) == 0 {
		t.Fatalf("find the root package: %v, %d files", err, len(files))
	}
	for _, file := range files {
		if strings.HasSuffix(file, "_test.go") {
			continue
		}
		syntax, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.ParseComments)
		if err != nil {
			t.Fatal(err)
		}
		for _, decl := range syntax.Decls {
			general, ok := decl.(*ast.GenDecl)
			if !ok || general.Tok != token.TYPE {
				continue
			}
			for _, s := range general.Specs {
				describe(found, wanted, s.(*ast.TypeSpec), general.Doc)
			}
		}
	}
	var want bytes.Buffer
	encoder := json.NewEncoder(&want)
	encoder.SetEscapeHTML(false)
	encoder.SetIndent("", "\t")
	if err := encoder.Encode(found); err != nil {
		t.Fatal(err)
	}
	if *update {
		if err := os.WriteFile("descriptions.json", want.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if !bytes.Equal(want.Bytes(), descriptions) {
		t.Error("descriptions.json is not what the comments say: run go test ./api -run TestDescriptions -update")
	}
}

func describe(found map[string]string, wanted map[string]bool, s *ast.TypeSpec, above *ast.CommentGroup) {
	structure, ok := s.Type.(*ast.StructType)
	if !ok || !wanted[s.Name.Name] {
		return
	}
	if s.Doc != nil {
		above = s.Doc
	}
	note(found, s.Name.Name, above)
	for _, field := range structure.Fields.List {
		comment := field.Doc
		if comment == nil {
			comment = field.Comment
		}
		for _, name := range field.Names {
			note(found, s.Name.Name+"."+name.Name, comment)
		}
	}
}

func note(found map[string]string, name string, comment *ast.CommentGroup) {
	if comment == nil {
		return
	}
	text := strings.Join(strings.Fields(new(doc.Package).Synopsis(comment.Text())), " ")
	if whole := strings.Join(strings.Fields(comment.Text()), " "); len(whole) < 400 {
		text = whole
	}
	found[name] = text
}

// structNames lists the structs that kinds are made of.
func structNames(kinds []bocage.Kind) map[string]bool {
	names := map[string]bool{}
	var walk func(reflect.Type)
	walk = func(typ reflect.Type) {
		switch typ.Kind() {
		case reflect.Pointer, reflect.Slice, reflect.Map:
			walk(typ.Elem())
		case reflect.Struct:
			if typ.PkgPath() != reflect.TypeFor[bocage.Kind]().PkgPath() || names[typ.Name()] {
				return
			}
			names[typ.Name()] = true
			for i := range typ.NumField() {
				walk(typ.Field(i).Type)
			}
		}
	}
	for _, kind := range kinds {
		walk(reflect.TypeOf(kind.New()))
	}
	return names
}
