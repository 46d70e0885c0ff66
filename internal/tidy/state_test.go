package tidy

import (
	"go/ast"
	"go/token"
	"strings"
	"testing"
)

// stateExceptions are package variables that the law would refuse, with the
// reason why each is right. The key is "folder.name".
var stateExceptions = map[string]string{}

// constantCalls make values that nobody changes.
var constantCalls = map[string]bool{
	"errors.New": true, "fmt.Errorf": true, "regexp.MustCompile": true,
	"netip.MustParseAddr": true, "netip.MustParsePrefix": true, "netip.AddrFrom4": true, "netip.PrefixFrom": true,
	"time.Date":           true,
	"strings.NewReplacer": true, "template.Must": true, "sync.OnceValue": true, "sync.OnceValues": true,
	"reflect.TypeFor": true, "crc32.MakeTable": true, "binary.Size": true, "time.Unix": true, "big.NewInt": true,
	"prometheus.NewDesc": true, "unsafe.Sizeof": true, "len": true, "[]byte": true, "string": true,
	"base64.NewEncoding": true, "base32.NewEncoding": true, "json.RawMessage": true, "sort.StringSlice": true,
}

const stateWhy = "state that nobody passes on is state that two tests, or two nodes in one process, share: " +
	"give it to a struct, make it a function's result, or name the exception and its reason in internal/tidy"

func TestNoInitFunctions(t *testing.T) {
	all := readTree(t)
	all.goFiles(func(f *file) {
		for _, d := range f.ast.Decls {
			if fn, ok := d.(*ast.FuncDecl); ok && fn.Recv == nil && fn.Name.Name == "init" {
				all.broken(t, fn.Pos(), "there are no init functions", "what happens is said in order in node and main, not by importing")
			}
		}
	})
}

func TestNoMutablePackageVariables(t *testing.T) {
	all := readTree(t)
	for folder, files := range all.packages() {
		declared := map[string]token.Pos{}
		makers := constantMakers(files)
		for _, f := range files {
			if f.test {
				continue
			}
			packageVariables(f, func(name *ast.Ident, declaredType, value ast.Expr, embedded bool) {
				if name.Name == "_" || stateExceptions[folder+"."+name.Name] != "" {
					return
				}
				_, emptyTable := declaredType.(*ast.ArrayType)
				if embedded || value == nil && emptyTable || value != nil && (constant(value) || makers[calledName(value)]) {
					declared[name.Name] = name.Pos()
					return
				}
				if linkerSets(f, name.Name) {
					return
				}
				all.broken(t, name.Pos(), "package variable "+name.Name+" does not look like a constant", stateWhy)
			})
		}
		for _, f := range files {
			if f.test {
				continue
			}
			changes(f, func(name *ast.Ident, how string) {
				if _, ours := declared[name.Name]; ours {
					all.broken(t, name.Pos(), "package variable "+name.Name+" is "+how, stateWhy)
				}
			})
		}
	}
}

// linkerSets: the one variable that the build writes.
func linkerSets(f *file, name string) bool { return f.folder() == "cmd/bocage" && name == "version" }

// packageVariables calls each with every variable that a file declares outside
// functions; a //go:embed variable has its value from the build.
func packageVariables(f *file, each func(name *ast.Ident, declaredType, value ast.Expr, embedded bool)) {
	for _, d := range f.ast.Decls {
		block, ok := d.(*ast.GenDecl)
		if !ok || block.Tok != token.VAR {
			continue
		}
		for _, s := range block.Specs {
			spec := s.(*ast.ValueSpec)
			embedded := hasDirective(block.Doc, "//go:embed") || hasDirective(spec.Doc, "//go:embed")
			for i, name := range spec.Names {
				var value ast.Expr
				if i < len(spec.Values) {
					value = spec.Values[i]
				} else if len(spec.Values) == 1 {
					value = spec.Values[0]
				}
				each(name, spec.Type, value, embedded)
			}
		}
	}
}

func hasDirective(doc *ast.CommentGroup, directive string) bool {
	if doc == nil {
		return false
	}
	for _, c := range doc.List {
		if strings.HasPrefix(c.Text, directive) {
			return true
		}
	}
	return false
}

// constant says whether an expression makes a value that is only read: a
// literal, a table, a call that is known to make one, or the like of these.
func constant(e ast.Expr) bool {
	switch e := e.(type) {
	case *ast.BasicLit, *ast.FuncLit, *ast.CompositeLit:
		return true
	case *ast.ParenExpr:
		return constant(e.X)
	case *ast.UnaryExpr:
		return e.Op != token.AND && constant(e.X)
	case *ast.BinaryExpr:
		return constant(e.X) && constant(e.Y)
	case *ast.Ident:
		return e.Name != "nil"
	case *ast.SelectorExpr:
		return true // another package's constant or variable, under another name
	case *ast.IndexExpr: // a generic function
		return constant(e.X)
	case *ast.CallExpr:
		return constantCalls[callName(e)]
	}
	return false
}

// constantMakers finds the functions of a package that only return a constant
// expression of what they are given: short names for constantCalls.
func constantMakers(files []*file) map[string]bool {
	makers := map[string]bool{}
	for _, f := range files {
		for _, d := range f.ast.Decls {
			fn, ok := d.(*ast.FuncDecl)
			if !ok || fn.Recv != nil || fn.Body == nil || len(fn.Body.List) != 1 {
				continue
			}
			if result, ok := fn.Body.List[0].(*ast.ReturnStmt); ok && len(result.Results) == 1 && constant(result.Results[0]) {
				makers[fn.Name.Name] = true
			}
		}
	}
	return makers
}

// calledName is the function that an expression calls, or "".
func calledName(e ast.Expr) string {
	if call, ok := e.(*ast.CallExpr); ok {
		return callName(call)
	}
	return ""
}

// callName prints the function of a call as it is written: "errors.New".
func callName(call *ast.CallExpr) string {
	switch fn := call.Fun.(type) {
	case *ast.Ident:
		return fn.Name
	case *ast.SelectorExpr:
		if pkg, ok := fn.X.(*ast.Ident); ok {
			return pkg.Name + "." + fn.Sel.Name
		}
	case *ast.IndexExpr:
		return callName(&ast.CallExpr{Fun: fn.X})
	case *ast.ArrayType:
		if element, ok := fn.Elt.(*ast.Ident); ok {
			return "[]" + element.Name
		}
	}
	return ""
}

// changes calls each with the names that functions of a file assign to,
// increment, take the address of, or delete from, where the name is not one of
// the function's own.
func changes(f *file, each func(name *ast.Ident, how string)) {
	for _, d := range f.ast.Decls {
		fn, ok := d.(*ast.FuncDecl)
		if !ok || fn.Body == nil {
			continue
		}
		local := localNames(fn)
		report := func(e ast.Expr, how string) {
			if name := base(e); name != nil && !local[name.Name] {
				each(name, how)
			}
		}
		ast.Inspect(fn.Body, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.AssignStmt:
				if n.Tok != token.DEFINE {
					for _, target := range n.Lhs {
						report(target, "assigned to")
					}
				}
			case *ast.IncDecStmt:
				report(n.X, "counted with")
			case *ast.UnaryExpr:
				if _, literal := n.X.(*ast.CompositeLit); n.Op == token.AND && !literal {
					if name, ok := n.X.(*ast.Ident); ok {
						report(name, "passed by address")
					}
				}
			case *ast.CallExpr:
				if name := callName(n); (name == "delete" || name == "clear") && len(n.Args) > 0 {
					report(n.Args[0], "emptied")
				}
			}
			return true
		})
	}
}

// base finds the variable that an assignable expression is part of.
func base(e ast.Expr) *ast.Ident {
	for {
		switch x := e.(type) {
		case *ast.Ident:
			return x
		case *ast.IndexExpr:
			e = x.X
		case *ast.SelectorExpr:
			e = x.X
		case *ast.ParenExpr:
			e = x.X
		case *ast.SliceExpr:
			e = x.X
		default:
			return nil
		}
	}
}

// localNames collects every name that a function declares anywhere in itself.
func localNames(fn *ast.FuncDecl) map[string]bool {
	local := map[string]bool{}
	fields := func(list *ast.FieldList) {
		if list == nil {
			return
		}
		for _, field := range list.List {
			for _, name := range field.Names {
				local[name.Name] = true
			}
		}
	}
	fields(fn.Recv)
	ast.Inspect(fn, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.FuncType:
			fields(n.Params)
			fields(n.Results)
		case *ast.AssignStmt:
			if n.Tok == token.DEFINE {
				for _, target := range n.Lhs {
					if name, ok := target.(*ast.Ident); ok {
						local[name.Name] = true
					}
				}
			}
		case *ast.RangeStmt:
			for _, target := range []ast.Expr{n.Key, n.Value} {
				if name, ok := target.(*ast.Ident); ok && n.Tok == token.DEFINE {
					local[name.Name] = true
				}
			}
		case *ast.ValueSpec:
			for _, name := range n.Names {
				local[name.Name] = true
			}
		}
		return true
	})
	return local
}
