package shell

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
)

// call is one command with its words; the first is its name.
type call struct {
	*Shell
	words []string
	std   Streams
}

// builtin is part of the shell: it may change it, and leave.
type builtin func(*call) error

// command is a program: it gives a status.
type command func(*call) int

// fail tells what a program has to complain about.
func (c *call) fail(status int, format string, arguments ...any) int {
	fmt.Fprintf(c.std.Err, c.words[0]+": "+format+"\n", arguments...)
	return status
}

// options splits a command's words into letters of options and the rest.
func (c *call) options() (letters string, rest []string) {
	for i, w := range c.words[1:] {
		switch {
		case w == "--":
			return letters, append(rest, c.words[i+2:]...)
		case len(w) > 1 && w[0] == '-' && w[1] != '-':
			letters += w[1:]
		case strings.HasPrefix(w, "--"):
			letters += " " + w + " "
		default:
			rest = append(rest, w)
		}
	}
	return letters, rest
}

// input is what a command reads: its files, or else its standard input.
func (c *call) input(names []string) (string, bool) {
	if len(names) == 0 || len(names) == 1 && names[0] == "-" {
		b, _ := io.ReadAll(io.LimitReader(c.std.In, maxOutput))
		return string(b), true
	}
	var b strings.Builder
	ok := true
	for _, name := range names {
		in, err := c.open(name)
		if err != nil {
			c.fail(1, "%s", err)
			ok = false
			continue
		}
		io.Copy(&b, io.LimitReader(in, maxOutput-int64(b.Len())))
	}
	return b.String(), ok
}

func status(f func(c *call) int) builtin {
	return func(c *call) error {
		c.status = f(c)
		return nil
	}
}

// builtinTable is what the shell does itself.
func builtinTable() map[string]builtin {
	leaving := func(kind leaveKind) builtin {
		return func(c *call) error {
			loops := 1
			if len(c.words) > 1 {
				loops, _ = strconv.Atoi(c.words[1])
			}
			return leave{kind, max(loops, 1)}
		}
	}
	exit := func(kind leaveKind) builtin {
		return func(c *call) error {
			if len(c.words) > 1 {
				n, _ := strconv.Atoi(c.words[1])
				c.status = n & 0xff
			}
			return leave{kind: kind}
		}
	}
	eval := func(c *call) error {
		parsed, err := parse(strings.Join(c.words[1:], " "))
		if err != nil {
			return c.fault(c.std, err)
		}
		c.limits.costly = c.limits.costly || hasReplacement(parsed)
		c.depth++
		defer func() { c.depth-- }()
		return c.statements(parsed.Stmts, c.std)
	}
	source := func(c *call) error {
		text, ok := c.input(c.words[1:min(len(c.words), 2)])
		if !ok {
			c.status = 1
			return nil
		}
		return eval(&call{c.Shell, []string{"eval", text}, c.std})
	}
	set := func(c *call) int {
		if len(c.words) == 1 {
			c.printVariables(c.std.Out, "", false)
		}
		return 0
	}
	return map[string]builtin{
		"break": leaving(leaveLoop), "continue": leaving(leaveTurn), "return": exit(leaveFunction), "exit": exit(leaveShell), "logout": exit(leaveShell),
		"eval": eval, "source": source, ".": source,
		":": status(func(*call) int { return 0 }), "cd": status(cd), "set": status(set), "unset": status(unset),
		"read": status(read), "shift": status(shift), "history": status(history), "type": status(whatIs), "exec": run, "command": run, "builtin": run,
		"umask":  status(func(c *call) int { fmt.Fprintln(c.std.Out, "0022"); return 0 }),
		"ulimit": status(func(c *call) int { fmt.Fprintln(c.std.Out, "unlimited"); return 0 }),
		"alias":  status(quiet), "unalias": status(quiet), "trap": status(quiet), "wait": status(quiet), "jobs": status(quiet), "bg": status(quiet),
		"fg": status(quiet), "disown": status(quiet), "shopt": status(quiet), "hash": status(quiet), "bind": status(quiet), "enable": status(quiet),
	}
}

func quiet(*call) int { return 0 }

// run is what passes its words on.
func run(c *call) error {
	rest := c.words[1:]
	for len(rest) > 0 && strings.HasPrefix(rest[0], "-") {
		if c.words[0] == "command" && (rest[0] == "-v" || rest[0] == "-V") {
			c.status = which(&call{c.Shell, rest, c.std})
			return nil
		}
		rest = rest[1:]
	}
	if len(rest) == 0 {
		c.status = 0
		return nil
	}
	return c.invoke(rest, c.std)
}

func cd(c *call) int {
	target := homeOf(c.user)
	if len(c.words) > 1 {
		target = c.words[1]
	}
	if target == "-" {
		target = c.variables["OLDPWD"].value
		fmt.Fprintln(c.std.Out, target)
	}
	where := c.absolute(target)
	f := c.files.get(where)
	complain := func(text string) int {
		fmt.Fprintf(c.std.Err, "-bash: cd: %s: %s\n", target, text)
		return 1
	}
	switch {
	case f == nil:
		return complain("No such file or directory")
	case !f.dir:
		return complain("Not a directory")
	case f.mode&0o007 == 0 && c.user != "root" && f.owner != c.user:
		return complain("Permission denied")
	}
	c.Shell.set("OLDPWD", c.dir)
	c.Shell.set("PWD", where)
	c.dir = where
	return 0
}

func unset(c *call) int {
	_, names := c.options()
	for _, name := range names {
		delete(c.variables, name)
		delete(c.functions, name)
	}
	return 0
}

// read takes one line, byte by byte: the rest is for who comes next.
func read(c *call) int {
	_, names := c.options()
	if len(names) == 0 {
		names = []string{"REPLY"}
	}
	var line []byte
	one := make([]byte, 1)
	ended := false
	for len(line) < maxValue {
		if n, err := c.std.In.Read(one); n == 0 && err != nil {
			ended = true
			break
		}
		if one[0] == '\n' {
			break
		}
		line = append(line, one[0])
	}
	fields := strings.Fields(string(line))
	for i, name := range names {
		value := ""
		switch {
		case i == len(names)-1 && i < len(fields):
			value = strings.Join(fields[i:], " ")
		case i < len(fields):
			value = fields[i]
		}
		c.Shell.set(name, value)
	}
	return truth(!ended || len(line) > 0)
}

func shift(c *call) int {
	n := 1
	if len(c.words) > 1 {
		n, _ = strconv.Atoi(c.words[1])
	}
	if n < 0 || n >= len(c.arguments) {
		return 1
	}
	c.arguments = append([]string{c.arguments[0]}, c.arguments[1+n:]...)
	return 0
}

func history(c *call) int {
	if letters, _ := c.options(); strings.ContainsAny(letters, "cw") {
		c.Shell.history = nil
		return 0
	}
	for i, line := range c.Shell.history {
		fmt.Fprintf(c.std.Out, "%5d  %s\n", i+1, line)
	}
	return 0
}

func whatIs(c *call) int {
	result := 0
	for _, name := range c.words[1:] {
		_, isFunction := c.functions[name]
		_, isBuiltin := c.builtins[name]
		_, isCommand := c.commands[name]
		switch {
		case isFunction:
			fmt.Fprintf(c.std.Out, "%s is a function\n", name)
		case isBuiltin:
			fmt.Fprintf(c.std.Out, "%s is a shell builtin\n", name)
		case isCommand:
			fmt.Fprintf(c.std.Out, "%s is /usr/bin/%s\n", name, name)
		default:
			fmt.Fprintf(c.std.Err, "-bash: type: %s: not found\n", name)
			result = 1
		}
	}
	return result
}

func which(c *call) int {
	result := 0
	for _, name := range c.words[1:] {
		if _, ok := c.commands[name]; ok {
			fmt.Fprintln(c.std.Out, "/usr/bin/"+name)
		} else if _, ok := c.builtins[name]; ok && c.words[0] != "which" {
			fmt.Fprintln(c.std.Out, name)
		} else {
			result = 1
		}
	}
	return result
}

func (s *Shell) printVariables(to io.Writer, prefix string, exportedOnly bool) {
	for _, name := range slices.Sorted(maps.Keys(s.variables)) {
		v := s.variables[name]
		if exportedOnly && !v.exported {
			continue
		}
		if prefix == "" {
			fmt.Fprintf(to, "%s=%s\n", name, v.value)
		} else {
			fmt.Fprintf(to, "%s%s=%q\n", prefix, name, v.value)
		}
	}
}
