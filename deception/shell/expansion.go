package shell

import (
	"bytes"
	"errors"
	"io"
	"io/fs"
	"strconv"
	"strings"

	"mvdan.cc/sh/v3/expand"
	"mvdan.cc/sh/v3/syntax"
)

// fields expands words to arguments.
func (s *Shell) fields(std Streams, words ...*syntax.Word) ([]string, error) {
	var out []string
	size := 0
	for field, err := range expand.FieldsSeq(s.expansion(std), words...) {
		if err != nil {
			return nil, err
		}
		if size += len(field) + 16; size > maxOutput {
			return nil, errExhausted
		}
		out = append(out, field)
	}
	return out, s.expanded()
}

func (s *Shell) literal(std Streams, word *syntax.Word) (string, error) {
	if word == nil {
		return "", nil
	}
	text, err := expand.Literal(s.expansion(std), word)
	if err != nil {
		return "", err
	}
	return text, s.expanded()
}

func (s *Shell) expanded() error {
	if s.limits.expanded > maxExpanded {
		return errExhausted
	}
	return nil
}

// expansion is how words become text: variables, substitutions and names of
// files are all ours.
func (s *Shell) expansion(std Streams) *expand.Config {
	return &expand.Config{
		Env: environment{s},
		CmdSubst: func(w io.Writer, c *syntax.CmdSubst) error {
			out, to := s.limits.buffer()
			err := s.nested(func(sub *Shell) error { return sub.statements(c.Stmts, Streams{std.In, to, std.Err}) })
			s.limits.expanded += out.Len()
			w.Write(bytes.ReplaceAll(out.Bytes(), []byte{0}, nil))
			return err
		},
		ProcSubst: func(*syntax.ProcSubst) (string, error) {
			return "", errors.New("cannot make pipe for process substitution: Too many open files")
		},
		ReadDir2: func(name string) ([]fs.DirEntry, error) {
			if err := s.limits.step(); err != nil {
				return nil, err
			}
			return s.files.list(s.absolute(name))
		},
	}
}

// variable is a shell variable: text, and whether commands see it.
type variable struct {
	value    string
	exported bool
}

func (s *Shell) set(name, value string) {
	v, ok := s.variables[name]
	if !ok && len(s.variables) >= maxVariables {
		return
	}
	v.value = value[:min(len(value), maxValue)]
	s.variables[name] = v
}

// environment is the shell's variables as expansions see them. Every look costs
// what it gives; where the result may be a product, the square.
type environment struct{ s *Shell }

func (e environment) Get(name string) expand.Variable {
	s := e.s
	text := func(value string) expand.Variable {
		s.limits.expanded += len(value) + 1
		if s.limits.costly {
			s.limits.expanded += len(value) * len(value) / 64
		}
		if s.limits.expanded > maxExpanded {
			value = ""
		}
		return expand.Variable{Set: true, Kind: expand.String, Str: value}
	}
	if user, ok := strings.CutPrefix(name, "HOME "); ok {
		if user == "root" || user == s.cfg.User {
			return text(homeOf(user))
		}
		return text("~" + user) // and never the real machine's users
	}
	switch name {
	case "?":
		return text(strconv.Itoa(s.status))
	case "$":
		return text("18452")
	case "PPID":
		return text("18451")
	case "#":
		return text(strconv.Itoa(len(s.arguments) - 1))
	case "@", "*":
		list := s.arguments[1:]
		for _, a := range list {
			text(a)
		}
		if s.limits.expanded > maxExpanded {
			list = nil
		}
		return expand.Variable{Set: true, Kind: expand.Indexed, List: list}
	case "!":
		return text("")
	case "-":
		return text("himBHs")
	case "RANDOM":
		return text(strconv.Itoa((s.limits.steps*7919 + len(s.history)*104729) % 32768))
	case "SECONDS":
		return text("17")
	}
	if n, err := strconv.Atoi(name); err == nil {
		if n >= 0 && n < len(s.arguments) {
			return text(s.arguments[n])
		}
		return expand.Variable{}
	}
	v, ok := s.variables[name]
	if !ok {
		return expand.Variable{}
	}
	out := text(v.value)
	out.Exported = v.exported
	return out
}

func (e environment) Each(each func(string, expand.Variable) bool) {
	for name := range e.s.variables {
		if !each(name, e.Get(name)) {
			return
		}
	}
}

// Set is for ${x:=y} and arithmetic.
func (e environment) Set(name string, v expand.Variable) error {
	if !v.IsSet() {
		delete(e.s.variables, name)
		return nil
	}
	e.s.set(name, v.String())
	return nil
}
