package tidy

import (
	"fmt"
	"go/ast"
	"go/token"
	"strings"
	"testing"
)

// storeys ranks the folders of the house: a package may import packages of
// lower storeys and of its own area. The longest matching prefix counts.
var storeys = map[string]int{
	".":        0,
	"store":    1,
	"stream":   1,
	"host":     1,
	"manifest": 1,
	// What an installation consists of; it knows nobody.
	"packaging": 0,
	"fault":     1,
	"identity":  2,
	// The engine of the stream authenticates whom it carries.
	"stream/jetstream": 3,
	"api":              4,
	"policy":           4,
	"dataplane":        4,
	"inspection":       4,
	"deception":        4,
	"recognition":      4,
	"lab":              4,
	// The performance plays on every room, as a user would.
	"lab/demo":      5,
	"node":          5,
	"cmd":           6,
	"e2e":           7,
	"internal/tidy": 0,
}

// storey finds a folder's rank and the prefix that gave it.
func storey(folder string) (rank int, known bool) {
	for prefix := folder; ; {
		if rank, known = storeys[prefix]; known {
			return rank, true
		}
		i := strings.LastIndexByte(prefix, '/')
		if i < 0 {
			return 0, false
		}
		prefix = prefix[:i]
	}
}

func TestImportsGoDown(t *testing.T) {
	all := readTree(t)
	all.goFiles(func(f *file) {
		own, known := storey(f.folder())
		if !known {
			all.broken(t, f.ast.Package, f.folder()+" has no storey",
				"a new folder needs a place in the law of imports: add it to storeys in internal/tidy")
			return
		}
		for imported, pos := range f.imports() {
			folder, ours := folderOf(imported)
			if !ours {
				continue
			}
			rank, known := storey(folder)
			area, _, _ := strings.Cut(folder, "/")
			switch {
			case area == f.area() && f.area() != ".":
			case known && rank < own:
			case f.test && isTestKit(folder) && rank <= own:
			default:
				all.broken(t, pos, fmt.Sprintf("%s may not import %s", f.folder(), folder),
					"rooms meet only on the words of the root package, through store and stream; imports go down: "+
						"root <- store, stream, host, manifest, fault <- identity <- rooms <- node <- cmd")
			}
		}
	})
}

// folderOf turns an import path of this module into its folder.
func folderOf(imported string) (folder string, ours bool) {
	if imported == module {
		return ".", true
	}
	return strings.CutPrefix(imported, module+"/")
}

// isTestKit says whether a folder helps tests only: hosttest, storetest, ...
func isTestKit(folder string) bool { return strings.HasSuffix(folder, "test") }

// confined lists modules and the only folders that may import them.
var confined = []struct {
	module  string
	folders []string
	why     string
}{
	{"github.com/nats-io/", []string{"stream/jetstream", "node"}, "the event engine can be replaced only if one place knows it"},
	{"go.etcd.io/", []string{"store/etcd", "node"}, "the state engine can be replaced only if one place knows it"},
	{"github.com/duckdb/", []string{"recognition/lake"}, "it needs cgo and may crash: only the child process of the lake holds it"},
	{"github.com/parquet-go/", []string{"recognition/lake"}, "the format of the history is the lake's business"},
	{"github.com/cilium/ebpf", []string{"dataplane"}, "programs in the kernel have one owner"},
	{"github.com/vishvananda/", []string{"host", "dataplane", "lab"}, "what Linux does for us is behind host"},
	{"github.com/spiffe/", []string{"identity"}, "who is who is decided in one place"},
	{"github.com/spf13/cobra", []string{"cmd"}, "the command line is the outermost layer"},
	{"github.com/jackc/", []string{"lab"}, "only the laboratory's own shop talks to a database"},
	{"golang.org/x/crypto/ssh", []string{"deception", "lab", "e2e"}, "nothing but a decoy, and those who test it, speaks SSH"},
	{"mvdan.cc/sh", []string{"deception"}, "only a decoy's shell interprets anything"},
	{"k8s.io/", []string{"api", "manifest", "e2e"}, "the Kubernetes dialect is a face, not the skeleton"},
	{"sigs.k8s.io/", []string{"api", "manifest", "cmd", "policy/suggest", "lab", "e2e"}, "the Kubernetes dialect is a face, not the skeleton"},
}

func TestModulesStayWhereTheyBelong(t *testing.T) {
	all := readTree(t)
	all.goFiles(func(f *file) {
		for imported, pos := range f.imports() {
			for _, c := range confined {
				if strings.HasPrefix(imported, c.module) && !within(f.folder(), c.folders) {
					all.broken(t, pos, fmt.Sprintf("%s is imported only under %s", imported, strings.Join(c.folders, ", ")), c.why)
				}
			}
		}
	})
}

func within(folder string, folders []string) bool {
	for _, f := range folders {
		if folder == f || strings.HasPrefix(folder, f+"/") {
			return true
		}
	}
	return false
}

func TestRootWordsNeedOnlyTheStandardLibrary(t *testing.T) {
	const why = "everything stands on the words: they travel into every process and must stay cheap, pure and stable"
	inputOutput := map[string]bool{"os": true, "os/exec": true, "net/http": true, "database/sql": true, "syscall": true, "unsafe": true}
	all := readTree(t)
	for _, f := range all.packages()["."] {
		for imported, pos := range f.imports() {
			first, _, _ := strings.Cut(imported, "/")
			switch {
			case f.test: // tests of the words may use test libraries
			case strings.Contains(first, "."):
				all.broken(t, pos, "the root package imports only the standard library, not "+imported, why)
			case inputOutput[imported]:
				all.broken(t, pos, "the root package does no input or output, so it does not import "+imported, why)
			}
		}
	}
}

// TestTheJudgeIsIndependent keeps the second opinion on policy one: what judges
// flows and what compiles them share the words of the root package only.
func TestTheJudgeIsIndependent(t *testing.T) {
	const why = "a step that compiler and judge share is a step in which both go wrong together, and no proof sees it"
	all := readTree(t)
	all.goFiles(func(f *file) {
		if f.test {
			return
		}
		for imported, pos := range f.imports() {
			folder, ours := folderOf(imported)
			compiler := f.folder() == "policy/compile" && strings.HasPrefix(folder, "policy/")
			if ours && (compiler || f.folder() == "policy/kubernetes" && folder == "policy/compile") {
				all.broken(t, pos, f.folder()+" may not import "+folder, why)
			}
		}
		if f.folder() == "policy/explain" {
			for name, pos := range selected(f, "compile") {
				if name != "Input" {
					all.broken(t, pos, "the judge takes compile.Input and nothing else from the compiler, not compile."+name, why)
				}
			}
		}
	})
}

// selected lists what a file takes from an imported package, by the package's name.
func selected(f *file, from string) map[string]token.Pos {
	names := map[string]token.Pos{}
	ast.Inspect(f.ast, func(n ast.Node) bool {
		if s, is := n.(*ast.SelectorExpr); is {
			if x, is := s.X.(*ast.Ident); is && x.Name == from {
				names[s.Sel.Name] = s.Pos()
			}
		}
		return true
	})
	return names
}

func TestTestKitsStayInTests(t *testing.T) {
	all := readTree(t)
	all.goFiles(func(f *file) {
		if f.test || isTestKit(f.folder()) {
			return
		}
		for imported, pos := range f.imports() {
			folder, ours := folderOf(imported)
			if imported == "testing" || ours && isTestKit(folder) {
				all.broken(t, pos, f.folder()+" may not import "+imported+" outside its tests",
					"what helps tests has no place in the product")
			}
		}
	})
}
