package tidy

import (
	"fmt"
	"go/ast"
	"path"
	"strings"
	"testing"
)

// longestFile is where a file stops telling one story, in lines.
const longestFile = 800

func TestFilesTellOneStory(t *testing.T) {
	for _, f := range readTree(t).files {
		if f.generated || path.Ext(f.path) == ".mod" || path.Ext(f.path) == ".json" || strings.HasSuffix(f.path, ".md") {
			continue
		}
		if lines := strings.Count(f.text, "\n"); lines > longestFile {
			t.Errorf("%s\n\tlaw: a file has at most %d lines, not %d\n\twhy: a file tells one story top-down; this one tells two", f.path, longestFile, lines)
		}
	}
}

func TestPackagesSayWhatTheyAre(t *testing.T) {
	all := readTree(t)
	for folder, files := range all.packages() {
		var comments []*ast.CommentGroup
		tests := true
		for _, f := range files {
			if !f.test {
				tests = false
			}
			if f.ast.Doc != nil && (!f.test || strings.HasPrefix(f.ast.Doc.Text(), "Package ")) {
				comments = append(comments, f.ast.Doc)
			}
		}
		first := files[0]
		name := strings.TrimSuffix(first.ast.Name.Name, "_test")
		const why = "the comment says what the package is, what it promises and what it never does; two of them contradict each other sooner or later"
		switch {
		case len(comments) == 0 && !tests:
			all.broken(t, first.ast.Package, fmt.Sprintf("package %s in %s has a package comment", name, folder), why)
		case len(comments) > 1:
			all.broken(t, comments[1].Pos(), fmt.Sprintf("package %s in %s has one package comment", name, folder), why)
		case len(comments) == 1:
			text := comments[0].Text()
			if name != "main" && !strings.HasPrefix(text, "Package "+name+" ") || name == "main" && !strings.HasPrefix(text, "Command ") {
				all.broken(t, comments[0].Pos(), `a package comment begins with "Package `+name+`" or, for a program, "Command"`, "so do all others")
			}
		}
	}
}

func TestPackageNamesMeanSomething(t *testing.T) {
	empty := map[string]bool{"util": true, "utils": true, "common": true, "helper": true, "helpers": true, "types": true,
		"base": true, "core": true, "lib": true, "manager": true, "service": true, "shared": true, "misc": true}
	all := readTree(t)
	all.goFiles(func(f *file) {
		name := f.ast.Name.Name
		if empty[name] || strings.ContainsAny(strings.TrimSuffix(name, "_test"), "_ABCDEFGHIJKLMNOPQRSTUVWXYZ") {
			all.broken(t, f.ast.Name.Pos(), "no package is called "+name, "a name that could hold anything soon does: one short lower-case word that says what is inside")
		}
	})
}

// A room that needs the kernel is tested where there is one, and says so.
func TestRootTestsAskForRoot(t *testing.T) {
	const why = "the test command must be able to tell a test that was skipped from one that passed"
	all := readTree(t)
	for _, files := range all.packages() {
		asks := functionsAskingForRoot(files)
		for _, f := range files {
			if !f.test {
				continue
			}
			for _, d := range f.ast.Decls {
				fn, ok := d.(*ast.FuncDecl)
				if !ok || fn.Recv != nil {
					continue
				}
				name := fn.Name.Name
				rooted := strings.HasPrefix(name, "TestRoot") || strings.HasPrefix(name, "BenchmarkRoot") || strings.HasPrefix(name, "FuzzRoot")
				isTest := isTestName(name)
				switch {
				case rooted && name != "TestRoot" && !asks[name] && !isWordRoot(name):
					all.broken(t, fn.Pos(), name+" calls hosttest.Root, itself or through what it calls", why)
				case isTest && !rooted && asks[name]:
					all.broken(t, fn.Pos(), name+" calls hosttest.Root, so its name begins with TestRoot, BenchmarkRoot or FuzzRoot", why)
				}
			}
		}
	}
}

func isTestName(name string) bool {
	return strings.HasPrefix(name, "Test") && name != "TestMain" || strings.HasPrefix(name, "Benchmark") || strings.HasPrefix(name, "Fuzz")
}

// isWordRoot excuses names in which Root goes on as another word: TestRootWords.
func isWordRoot(name string) bool {
	return name == "TestRootWordsNeedOnlyTheStandardLibrary" || name == "TestRootTestsAskForRoot"
}

// functionsAskingForRoot finds the functions of a package that call
// hosttest.Root or hosttest.Namespace, directly or through each other.
func functionsAskingForRoot(files []*file) map[string]bool {
	calls := map[string][]string{}
	asks := map[string]bool{}
	for _, f := range files {
		kit := f.localName(module + "/host/hosttest")
		for _, d := range f.ast.Decls {
			fn, ok := d.(*ast.FuncDecl)
			if !ok || fn.Body == nil {
				continue
			}
			name := fn.Name.Name
			ast.Inspect(fn.Body, func(n ast.Node) bool {
				call, ok := n.(*ast.CallExpr)
				if !ok {
					return true
				}
				switch target := call.Fun.(type) {
				case *ast.Ident:
					calls[name] = append(calls[name], target.Name)
				case *ast.SelectorExpr:
					pkg, ok := target.X.(*ast.Ident)
					if ok && kit != "" && pkg.Name == kit && (target.Sel.Name == "Root" || target.Sel.Name == "Namespace") {
						asks[name] = true
					} else {
						calls[name] = append(calls[name], target.Sel.Name)
					}
				}
				return true
			})
		}
	}
	for changed := true; changed; {
		changed = false
		for name, targets := range calls {
			for _, target := range targets {
				// Tests do not stand in for each other.
				if asks[target] && !asks[name] && !isTestName(target) {
					asks[name], changed = true, true
				}
			}
		}
	}
	return asks
}
