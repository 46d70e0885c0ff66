package tidy

import (
	"go/ast"
	"go/parser"
	"go/token"
	"maps"
	"slices"
	"testing"
)

// A law that cannot fail keeps nobody: here each reader of sources sees what it
// has to find, and what it has to leave alone.

func parse(t *testing.T, name, source string) *file {
	t.Helper()
	parsed, err := parser.ParseFile(token.NewFileSet(), name, source, parser.ParseComments|parser.SkipObjectResolution)
	if err != nil {
		t.Fatal(err)
	}
	return &file{path: name, text: source, ast: parsed, test: true}
}

func TestConstantsAreTold(t *testing.T) {
	f := parse(t, "room/x.go", `package room
var (
	good1 = errors.New("x")
	good2 = []string{"a"}
	good3 = regexp.MustCompile("a")
	good4 = 3 * time.Second
	good5 = map[string]int{"a": 1}
	bad1  sync.Mutex
	bad2  = &thing{}
	bad3  = make(map[string]int)
	bad4  = newThing()
	bad5  *thing
)
`)
	var bad []string
	packageVariables(f, func(name *ast.Ident, _, value ast.Expr, _ bool) {
		if value == nil || !constant(value) {
			bad = append(bad, name.Name)
		}
	})
	if want := []string{"bad1", "bad2", "bad3", "bad4", "bad5"}; !slices.Equal(bad, want) {
		t.Errorf("found %v, want %v", bad, want)
	}
}

func TestChangesAreFound(t *testing.T) {
	f := parse(t, "room/x.go", `package room
func f(param int) {
	table["a"] = 1
	count++
	list = append(list, 1)
	delete(gone, "a")
	use(&shared)
	thing.field = 2
	local := 1
	local = 2
	param = 3
	for i := range 3 { i++ }
	var v int
	v = 1
	read(table)
}
`)
	var found []string
	changes(f, func(name *ast.Ident, _ string) { found = append(found, name.Name) })
	if want := []string{"table", "count", "list", "gone", "shared", "thing"}; !slices.Equal(found, want) {
		t.Errorf("found %v, want %v", found, want)
	}
}

func TestAskingForRootIsSeenThroughHelpers(t *testing.T) {
	f := parse(t, "room/x_test.go", `package room
import "bocage.dev/bocage/host/hosttest"
func TestRootDirect(t *testing.T) { hosttest.Root(t) }
func TestRootByHelper(t *testing.T) { bed(t) }
func TestRootNot(t *testing.T) { other(t) }
func bed(t *testing.T) { deeper(t) }
func deeper(t *testing.T) { hosttest.Namespace(t) }
func other(t *testing.T) { TestRootDirect(t) }
`)
	asks := functionsAskingForRoot([]*file{f})
	for name, want := range map[string]bool{"TestRootDirect": true, "TestRootByHelper": true, "bed": true, "deeper": true, "TestRootNot": false, "other": false} {
		if asks[name] != want {
			t.Errorf("%s asks for root: %v, want %v", name, asks[name], want)
		}
	}
}

func TestWhatIsTakenFromAPackageIsSeen(t *testing.T) {
	taken := selected(parse(t, "room/x.go", `package room
func f(in compile.Input) { other.Ref(compile.Compile(in), in.compile) }
`), "compile")
	if names := slices.Sorted(maps.Keys(taken)); !slices.Equal(names, []string{"Compile", "Input"}) {
		t.Errorf("found %v", names)
	}
}

func TestStoreys(t *testing.T) {
	for folder, want := range map[string]int{".": 0, "store/etcd": 1, "stream": 1, "stream/jetstream": 3, "policy/compile/x": 4, "lab/demo": 5, "cmd/bocage": 6} {
		if got, known := storey(folder); !known || got != want {
			t.Errorf("%s is on storey %d (%v), want %d", folder, got, known, want)
		}
	}
	if _, known := storey("elsewhere"); known {
		t.Error("a folder that nobody placed has a storey")
	}
}

func TestForbiddenWordsAreFound(t *testing.T) {
	for text, want := range map[string]bool{"a honey" + "pot": true, "// TO" + "DO: x": true, "see issue" + " 12": true,
		"a decoy": false, "todos and tissues": false, "this issue, two of them": false} {
		found := false
		for _, word := range forbidden {
			found = found || word.pattern.MatchString(text)
		}
		if found != want {
			t.Errorf("%q is forbidden: %v, want %v", text, found, want)
		}
	}
}
