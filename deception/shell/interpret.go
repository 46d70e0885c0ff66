package shell

import (
	"errors"
	"fmt"
	"regexp"
	"strings"

	"mvdan.cc/sh/v3/expand"
	"mvdan.cc/sh/v3/pattern"
	"mvdan.cc/sh/v3/syntax"
)

// leave is how a command ends more than itself: loops, functions or the shell.
type leave struct {
	kind  leaveKind
	loops int
}

type leaveKind int

const (
	leaveLoop leaveKind = iota
	leaveTurn
	leaveFunction
	leaveShell
)

func (leave) Error() string { return "leaves" }

// statements runs one after the other.
func (s *Shell) statements(list []*syntax.Stmt, std Streams) error {
	for _, st := range list {
		if err := s.statement(st, std); err != nil {
			return err
		}
	}
	return nil
}

func (s *Shell) statement(st *syntax.Stmt, std Streams) error {
	if err := s.limits.step(); err != nil {
		return err
	}
	std, done, err := s.redirect(st.Redirs, std)
	if err != nil {
		return err
	}
	if done != nil {
		defer done()
	} else if len(st.Redirs) > 0 {
		return nil // the fault is told, the status set
	}
	if st.Cmd != nil {
		if st.Background {
			fmt.Fprintf(std.Err, "[1] %d\n", 20000+s.limits.steps%1000)
		}
		if err := s.command(st.Cmd, std); err != nil {
			return err
		}
	} else {
		s.status = 0
	}
	if st.Negated {
		s.status = truth(s.status != 0)
	}
	return nil
}

func truth(b bool) int {
	if b {
		return 0
	}
	return 1
}

func (s *Shell) command(cmd syntax.Command, std Streams) error {
	switch c := cmd.(type) {
	case *syntax.CallExpr:
		return s.call(c, std)
	case *syntax.BinaryCmd:
		return s.binary(c, std)
	case *syntax.Block:
		return s.statements(c.Stmts, std)
	case *syntax.Subshell:
		return s.nested(func(sub *Shell) error { return sub.statements(c.Stmts, std) })
	case *syntax.IfClause:
		return s.ifClause(c, std)
	case *syntax.WhileClause:
		return s.loop(func() (bool, error) {
			if err := s.statements(c.Cond, std); err != nil {
				return false, err
			}
			return (s.status == 0) != c.Until, nil
		}, c.Do, std)
	case *syntax.ForClause:
		return s.forClause(c, std)
	case *syntax.CaseClause:
		return s.caseClause(c, std)
	case *syntax.FuncDecl:
		if c.Name == nil {
			return s.fault(std, errors.New("syntax error near unexpected token `)'"))
		}
		if len(s.functions) < maxVariables {
			s.functions[c.Name.Value] = c.Body
		}
		s.status = 0
		return nil
	case *syntax.DeclClause:
		return s.declare(c, std)
	case *syntax.ArithmCmd:
		n, err := expand.Arithm(s.expansion(std), c.X)
		if err != nil {
			return s.fault(std, err)
		}
		s.status = truth(n != 0)
		return nil
	case *syntax.LetClause:
		for _, x := range c.Exprs {
			n, err := expand.Arithm(s.expansion(std), x)
			if err != nil {
				return s.fault(std, err)
			}
			s.status = truth(n != 0)
		}
		return nil
	case *syntax.TestClause:
		yes, err := s.test(c.X, std)
		if err != nil {
			return s.fault(std, err)
		}
		s.status = truth(yes)
		return nil
	case *syntax.TimeClause:
		if c.Stmt != nil {
			if err := s.statement(c.Stmt, std); err != nil {
				return err
			}
		}
		fmt.Fprint(std.Err, "\nreal\t0m0.003s\nuser\t0m0.001s\nsys\t0m0.002s\n")
		return nil
	default:
		return s.fault(std, errors.New("syntax error"))
	}
}

// fault tells what a command cannot, unless a bound is why.
func (s *Shell) fault(std Streams, err error) error {
	if errors.Is(err, errExhausted) {
		return err
	}
	text := err.Error()
	fmt.Fprintf(std.Err, "-bash: %s\n", text[:min(len(text), 256)])
	s.status = 1
	return nil
}

// nested runs something whose changes to the shell are lost; leaving ends there.
func (s *Shell) nested(run func(*Shell) error) error {
	if s.depth >= maxDepth {
		return errExhausted
	}
	sub := s.subshell()
	err := run(sub)
	s.status = sub.status
	if _, ok := errors.AsType[leave](err); ok {
		return nil
	}
	return err
}

func (s *Shell) binary(c *syntax.BinaryCmd, std Streams) error {
	switch c.Op {
	case syntax.AndStmt, syntax.OrStmt:
		if err := s.statement(c.X, std); err != nil {
			return err
		}
		if (s.status == 0) == (c.Op == syntax.AndStmt) {
			return s.statement(c.Y, std)
		}
		return nil
	}
	// A pipe: the left side runs first, its output is the right side's input.
	out, to := s.limits.buffer()
	left := Streams{std.In, to, std.Err}
	if c.Op == syntax.PipeAll {
		left.Err = to
	}
	written := s.limits.output
	err := s.nested(func(sub *Shell) error { return sub.statement(c.X, left) })
	// A writer that nobody stops ends when the pipe is full, as with SIGPIPE; it
	// costs the command nothing but that.
	s.limits.output = min(s.limits.output, written+maxOutput/4)
	if err != nil {
		return err
	}
	return s.nested(func(sub *Shell) error { return sub.statement(c.Y, Streams{out, std.Out, std.Err}) })
}

func (s *Shell) ifClause(c *syntax.IfClause, std Streams) error {
	for ; c != nil; c = c.Else {
		if len(c.Cond) > 0 {
			if err := s.statements(c.Cond, std); err != nil {
				return err
			}
			if s.status != 0 {
				s.status = 0
				continue
			}
		}
		return s.statements(c.Then, std)
	}
	return nil
}

// loop runs a body while a condition holds.
func (s *Shell) loop(more func() (bool, error), body []*syntax.Stmt, std Streams) error {
	status := 0
	for {
		if err := s.limits.step(); err != nil {
			return err
		}
		yes, err := more()
		if err == nil && !yes {
			s.status = status
			return nil
		}
		if err == nil {
			err = s.statements(body, std)
			status = s.status
		}
		if err == nil {
			continue
		}
		out, ok := errors.AsType[leave](err)
		if !ok || out.kind > leaveTurn {
			return err
		}
		if out.loops > 1 {
			return leave{out.kind, out.loops - 1}
		}
		if out.kind == leaveLoop {
			s.status = 0
			return nil
		}
	}
}

func (s *Shell) forClause(c *syntax.ForClause, std Streams) error {
	if c.Select {
		return s.fault(std, errors.New("select: not supported"))
	}
	switch it := c.Loop.(type) {
	case *syntax.WordIter:
		items := s.arguments[1:]
		if it.InPos.IsValid() {
			var err error
			if items, err = s.fields(std, it.Items...); err != nil {
				return s.fault(std, err)
			}
		}
		i := 0
		return s.loop(func() (bool, error) {
			if i == len(items) {
				return false, nil
			}
			s.set(it.Name.Value, items[i])
			i++
			return true, nil
		}, c.Do, std)
	case *syntax.CStyleLoop:
		value := func(x syntax.ArithmExpr, otherwise int) (int, error) {
			if x == nil {
				return otherwise, nil
			}
			return expand.Arithm(s.expansion(std), x)
		}
		if _, err := value(it.Init, 0); err != nil {
			return s.fault(std, err)
		}
		first := true
		return s.loop(func() (bool, error) {
			if !first {
				if _, err := value(it.Post, 0); err != nil {
					return false, s.fault(std, err)
				}
			}
			first = false
			n, err := value(it.Cond, 1)
			if err != nil {
				return false, s.fault(std, err)
			}
			return n != 0, nil
		}, c.Do, std)
	}
	return nil
}

func (s *Shell) caseClause(c *syntax.CaseClause, std Streams) error {
	word, err := s.literal(std, c.Word)
	if err != nil {
		return s.fault(std, err)
	}
	s.status = 0
	for _, item := range c.Items {
		for _, p := range item.Patterns {
			matches, err := s.matches(std, word, p)
			if err != nil {
				return s.fault(std, err)
			}
			if matches {
				return s.statements(item.Stmts, std)
			}
		}
	}
	return nil
}

func (s *Shell) matches(std Streams, word string, p *syntax.Word) (bool, error) {
	text, err := expand.Pattern(s.expansion(std), p)
	if err != nil {
		return false, err
	}
	expr, err := pattern.Regexp(text, pattern.EntireString)
	if err != nil {
		return false, err
	}
	re, err := regexp.Compile(expr)
	return err == nil && re.MatchString(word), err
}

// declare is export, declare, local, readonly and typeset.
func (s *Shell) declare(c *syntax.DeclClause, std Streams) error {
	s.status = 0
	if len(c.Args) == 0 {
		s.printVariables(std.Out, "declare -x ", true)
		return nil
	}
	for _, a := range c.Args {
		if a.Name == nil {
			continue // an option
		}
		if a.Value != nil {
			if err := s.assign(a, std); err != nil {
				return s.fault(std, err)
			}
		}
		if v, ok := s.variables[a.Name.Value]; ok && c.Variant.Value == "export" {
			v.exported = true
			s.variables[a.Name.Value] = v
		}
	}
	return nil
}

func (s *Shell) assign(a *syntax.Assign, std Streams) error {
	value := ""
	switch {
	case a.Array != nil:
		for i, e := range a.Array.Elems {
			if e.Value == nil {
				continue
			}
			v, err := s.literal(std, e.Value)
			if err != nil {
				return err
			}
			if i == 0 {
				value = v // arrays are their first element here
			}
		}
	case a.Value != nil:
		v, err := s.literal(std, a.Value)
		if err != nil {
			return err
		}
		value = v
	}
	if a.Append {
		value = s.variables[a.Name.Value].value + value
	}
	s.set(a.Name.Value, value)
	return nil
}

// call runs a simple command: a function, one of ours, a script, or nothing that
// exists.
func (s *Shell) call(c *syntax.CallExpr, std Streams) error {
	arguments, err := s.fields(std, c.Args...)
	if err != nil {
		return s.fault(std, err)
	}
	run := s
	if len(arguments) > 0 && len(c.Assigns) > 0 {
		run = s.subshell() // assignments are for this command only
	}
	for _, a := range c.Assigns {
		if err := run.assign(a, std); err != nil {
			return s.fault(std, err)
		}
		if run != s {
			v := run.variables[a.Name.Value]
			v.exported = true
			run.variables[a.Name.Value] = v
		}
	}
	if len(arguments) == 0 {
		s.status = 0
		return nil
	}
	err = run.invoke(arguments, std)
	s.status, s.ended = run.status, run.ended
	return err
}

// invoke runs a command by its words.
func (s *Shell) invoke(arguments []string, std Streams) error {
	if err := s.limits.step(); err != nil {
		return err
	}
	if s.depth >= maxDepth {
		return errExhausted
	}
	name := arguments[0]
	if body, ok := s.functions[name]; ok {
		outer := s.arguments
		s.arguments = append([]string{outer[0]}, arguments[1:]...)
		s.depth++
		err := s.statement(body, std)
		s.depth--
		s.arguments = outer
		if out, ok := errors.AsType[leave](err); ok && out.kind == leaveFunction {
			return nil
		}
		return err
	}
	if run, ok := s.builtins[name]; ok {
		return run(&call{s, arguments, std})
	}
	file := name
	if !strings.Contains(name, "/") {
		run, ok := s.commands[name]
		if !ok {
			fmt.Fprintf(std.Err, "-bash: %s: command not found\n", name)
			s.status = 127
			return nil
		}
		s.status = run(&call{s, arguments, std})
		return nil
	}
	return s.runFile(file, arguments, std)
}

// runFile runs what a path names: one of our commands, or a script that was
// dropped.
func (s *Shell) runFile(name string, arguments []string, std Streams) error {
	where := s.absolute(name)
	f := s.files.get(where)
	complain := func(status int, text string) error {
		fmt.Fprintf(std.Err, "-bash: %s: %s\n", name, text)
		s.status = status
		return nil
	}
	switch {
	case f == nil:
		return complain(127, "No such file or directory")
	case f.dir:
		return complain(126, "Is a directory")
	case f.mode&0o111 == 0:
		return complain(126, "Permission denied")
	case f.program != "":
		if run, ok := s.commands[f.program]; ok {
			s.status = run(&call{s, append([]string{f.program}, arguments[1:]...), std})
			return nil
		}
		return complain(126, "Permission denied")
	case strings.ContainsRune(f.content[:min(len(f.content), 512)], 0):
		return complain(126, "cannot execute binary file: Exec format error")
	}
	return s.script(f.content, append([]string{name}, arguments[1:]...), std)
}

// script runs source in a subshell of its own.
func (s *Shell) script(source string, arguments []string, std Streams) error {
	parsed, err := parse(source)
	if err != nil {
		fmt.Fprintf(std.Err, "%s: %s\n", arguments[0], syntaxMessage(err, source))
		s.status = 2
		return nil
	}
	s.limits.costly = s.limits.costly || hasReplacement(parsed)
	return s.nested(func(sub *Shell) error {
		sub.arguments = arguments
		return sub.statements(parsed.Stmts, std)
	})
}

// test is [[ ]].
func (s *Shell) test(x syntax.TestExpr, std Streams) (bool, error) {
	if err := s.limits.step(); err != nil {
		return false, err
	}
	switch x := x.(type) {
	case *syntax.Word:
		text, err := s.literal(std, x)
		return text != "", err
	case *syntax.ParenTest:
		return s.test(x.X, std)
	case *syntax.UnaryTest:
		if x.Op == syntax.TsNot {
			yes, err := s.test(x.X, std)
			return !yes, err
		}
		word, ok := x.X.(*syntax.Word)
		if !ok {
			return false, errors.New("conditional expression is wrong")
		}
		text, err := s.literal(std, word)
		return s.testOne(x.Op.String(), text), err
	case *syntax.BinaryTest:
		if x.Op == syntax.AndTest || x.Op == syntax.OrTest {
			yes, err := s.test(x.X, std)
			if err != nil || yes == (x.Op == syntax.OrTest) {
				return yes, err
			}
			return s.test(x.Y, std)
		}
		left, ok1 := x.X.(*syntax.Word)
		right, ok2 := x.Y.(*syntax.Word)
		if !ok1 || !ok2 {
			return false, errors.New("conditional expression is wrong")
		}
		a, err := s.literal(std, left)
		if err != nil {
			return false, err
		}
		switch x.Op {
		case syntax.TsMatch, syntax.TsMatchShort:
			return s.matches(std, a, right)
		case syntax.TsNoMatch:
			yes, err := s.matches(std, a, right)
			return !yes, err
		}
		b, err := s.literal(std, right)
		if err != nil {
			return false, err
		}
		if x.Op == syntax.TsReMatch {
			re, err := regexp.Compile(b)
			return err == nil && re.MatchString(a), nil
		}
		return testTwo(a, x.Op.String(), b), nil
	}
	return false, nil
}
