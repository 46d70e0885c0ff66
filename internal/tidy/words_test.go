package tidy

import (
	"go/ast"
	"go/token"
	"regexp"
	"strings"
	"testing"
)

// forbidden are words that do not appear in the repository. They are put
// together here, so that this file does not break its own law.
var forbidden = []struct {
	pattern *regexp.Regexp
	what    string
	why     string
}{
	{regexp.MustCompile(`(?i)honey` + `pot`), "the word for a false target is decoy", "one word, one meaning, everywhere"},
	{regexp.MustCompile(`\b(TO` + `DO|FIX` + `ME|X` + `XX)\b`), "nothing is left to do in a comment", "what is not done is an open issue or not worth doing; a note in a comment is neither"},
	{regexp.MustCompile(`/wor` + `k/|/tmp/` + `w/`), "no path of somebody's machine", "the repository works wherever it is cloned"},
	{regexp.MustCompile(`proxy\.gol` + `ang|sum\.gol` + `ang|deb\.deb` + `ian|security\.deb` + `ian|registry\.np` + `mjs|py` + `pi\.org|crates\.i` + `o\b`), "no host of a package registry", "where packages come from is the machine's business, and mirrors differ"},
	{regexp.MustCompile(`(?i)\bissue #?[0-9]+\b`), "no number of an issue", "a comment says why by itself; numbers lose their meaning when the tracker changes"},
	{regexp.MustCompile(`(?i)co-authored` + `-by`), "no names of authors", "history knows them"},
	{regexp.MustCompile(`^(<{7}|>{7}) `), "no mark of a conflict", "somebody has to decide between the two"},
}

func TestWords(t *testing.T) {
	for _, f := range readTree(t).files {
		for number, line := range strings.Split(f.text, "\n") {
			for _, word := range forbidden {
				if found := word.pattern.FindString(line); found != "" {
					t.Errorf("%s:%d: %q\n\tlaw: %s\n\twhy: %s", f.path, number+1, found, word.what, word.why)
				}
			}
		}
	}
}

func TestErrorsSayWhatWasBeingDone(t *testing.T) {
	all := readTree(t)
	all.goFiles(func(f *file) {
		if f.test {
			return
		}
		ast.Inspect(f.ast, func(n ast.Node) bool {
			call, ok := n.(*ast.CallExpr)
			if !ok || len(call.Args) == 0 {
				return true
			}
			name := callName(call)
			text, ok := call.Args[0].(*ast.BasicLit)
			if ok && (name == "fmt.Errorf" || name == "errors.New") {
				lower := strings.ToLower(strings.Trim(text.Value, "\"`"))
				for _, empty := range []string{"failed to ", "error ", "could not ", "unable to "} {
					if strings.HasPrefix(lower, empty) {
						all.broken(t, text.Pos(), "an error does not begin with "+empty+"but with what was being done",
							`wrapped errors read as a path: "attach veth1: load program: ..."`)
					}
				}
			}
			return true
		})
	})
}

func TestLogMessagesAreConstant(t *testing.T) {
	levels := map[string]bool{"Debug": true, "Info": true, "Warn": true, "Error": true,
		"DebugContext": true, "InfoContext": true, "WarnContext": true, "ErrorContext": true}
	all := readTree(t)
	all.goFiles(func(f *file) {
		if f.test || f.localName("log/slog") == "" {
			return
		}
		ast.Inspect(f.ast, func(n ast.Node) bool {
			call, ok := n.(*ast.CallExpr)
			if !ok {
				return true
			}
			method, ok := call.Fun.(*ast.SelectorExpr)
			if !ok || !levels[method.Sel.Name] || len(call.Args) == 0 {
				return true
			}
			message := call.Args[0]
			if strings.HasSuffix(method.Sel.Name, "Context") && len(call.Args) > 1 {
				message = call.Args[1]
			}
			made := false
			switch m := message.(type) {
			case *ast.CallExpr:
				made = callName(m) == "fmt.Sprintf" || callName(m) == "fmt.Sprint"
			case *ast.BinaryExpr:
				made = m.Op == token.ADD
			}
			if made {
				all.broken(t, message.Pos(), "a log message is a constant; what varies is a key and a value", "people search for messages and count them")
			}
			return true
		})
	})
}

func TestNobodySleepsToWait(t *testing.T) {
	all := readTree(t)
	all.goFiles(func(f *file) {
		name := f.localName("time")
		if name == "" {
			return
		}
		synctest := f.localName("testing/synctest") != "" // there, time passes without waiting
		ast.Inspect(f.ast, func(n ast.Node) bool {
			call, ok := n.(*ast.CallExpr)
			if ok && callName(call) == name+".Sleep" && !synctest {
				all.broken(t, call.Pos(), "time.Sleep is not called",
					"a sleep is too long on one machine and too short on another: wait for the event, or for a ticker that ends with a context")
			}
			return true
		})
	})
}

// Decisions are cited by their numbers, in commits that nobody rewrites.
func TestDecisionsHaveNumbersOfTheirOwn(t *testing.T) {
	numbered := map[string]string{}
	for _, f := range readTree(t).files {
		name, isDecision := strings.CutPrefix(f.path, "docs/decisions/")
		if !isDecision || name == "README.md" {
			continue
		}
		number, _, _ := strings.Cut(name, "-")
		if other := numbered[number]; other != "" {
			t.Errorf("%s and %s have one number: the later one takes the next that is free", other, f.path)
		}
		numbered[number] = f.path
		if heading := "# " + strings.TrimLeft(number, "0") + ". "; !strings.HasPrefix(f.text, heading) {
			t.Errorf("%s does not begin with %q, which is its number", f.path, heading)
		}
	}
}
