package tidy

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"sort"
	"strconv"
	"strings"
	"testing"
)

const module = "bocage.dev/bocage"

// root is the repository, seen from this package's folder, where tests run.
const root = "../.."

// tree is the repository's text, parsed where it is Go. Other modules inside it
// (development tools) and what is built are left out.
type tree struct {
	files []file
	fset  *token.FileSet
}

// file is one text file; path is relative to the repository, with slashes.
type file struct {
	path string
	text string
	// Go files only.
	ast       *ast.File
	generated bool
	test      bool
}

// folder is the path of the file's package in the module; "." is the root.
func (f *file) folder() string { return path.Dir(f.path) }

// area is the first element of the folder: the room, or the ground.
func (f *file) area() string {
	area, _, _ := strings.Cut(f.folder(), "/")
	return area
}

// imports returns the paths that the file imports with their positions.
func (f *file) imports() map[string]token.Pos {
	found := map[string]token.Pos{}
	for _, spec := range f.ast.Imports {
		if p, err := strconv.Unquote(spec.Path.Value); err == nil {
			found[p] = spec.Pos()
		}
	}
	return found
}

// localName returns the name by which the file calls an imported package, or "".
func (f *file) localName(importPath string) string {
	for _, spec := range f.ast.Imports {
		if p, err := strconv.Unquote(spec.Path.Value); err != nil || p != importPath {
			continue
		}
		if spec.Name != nil {
			return spec.Name.Name
		}
		return path.Base(importPath)
	}
	return ""
}

// readTree reads the repository.
func readTree(t *testing.T) *tree {
	t.Helper()
	all := &tree{fset: token.NewFileSet()}
	err := filepath.WalkDir(root, func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, name)
		if err != nil {
			return err
		}
		rel = filepath.ToSlash(rel)
		if d.IsDir() {
			if outside(rel) {
				return fs.SkipDir
			}
			if _, err := os.Stat(filepath.Join(name, "go.mod")); err == nil && rel != "." {
				return fs.SkipDir
			}
			return nil
		}
		if !d.Type().IsRegular() || !isText(rel) {
			return nil
		}
		text, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		f := file{path: rel, text: string(text), test: strings.HasSuffix(rel, "_test.go")}
		if strings.HasSuffix(rel, ".go") {
			f.ast, err = parser.ParseFile(all.fset, rel, text, parser.ParseComments|parser.SkipObjectResolution)
			if err != nil {
				return err
			}
			f.generated = ast.IsGenerated(f.ast)
		}
		all.files = append(all.files, f)
		return nil
	})
	if err != nil {
		t.Fatalf("read the repository: %v", err)
	}
	sort.Slice(all.files, func(i, j int) bool { return all.files[i].path < all.files[j].path })
	return all
}

// outside says which folders are not the repository's own text.
func outside(rel string) bool {
	switch rel {
	case ".git", "bin", ".bin":
		return true
	}
	return path.Base(rel) == "testdata" || path.Base(rel) == "node_modules"
}

// isText picks the files that people read, by name.
func isText(rel string) bool {
	switch path.Ext(rel) {
	case ".go", ".c", ".h", ".md", ".yaml", ".yml", ".sh", ".mod", ".txt", ".json":
		return true
	case "":
		return path.Base(rel) != "LICENSE"
	}
	return false
}

// goFiles calls each with every Go file that people wrote.
func (a *tree) goFiles(each func(f *file)) {
	for i := range a.files {
		if f := &a.files[i]; f.ast != nil && !f.generated {
			each(f)
		}
	}
}

// packages groups the Go files that people wrote by folder.
func (a *tree) packages() map[string][]*file {
	found := map[string][]*file{}
	a.goFiles(func(f *file) { found[f.folder()] = append(found[f.folder()], f) })
	return found
}

// broken reports one breach: which law, where, and why the law is there.
func (a *tree) broken(t *testing.T, pos token.Pos, law, why string) {
	t.Helper()
	t.Errorf("%s\n\tlaw: %s\n\twhy: %s", a.fset.Position(pos), law, why)
}
