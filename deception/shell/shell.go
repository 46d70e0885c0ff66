// Package shell is a shell that is none: it parses what an attacker types as
// bash does and answers as a small Linux server would, from memory.
//
// It promises that a command is bounded in steps, time, output and memory, that
// the same command on the same machine gives the same answer, and that nothing
// is touched but the Shell: there is no file, process, user or connection of the
// real machine behind any command, and no way in the interpreter to ask for one.
// What needs a connection fails as it does behind a firewall.
//
// A Shell belongs to one goroutine.
package shell

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"path"
	"strings"
	"time"

	"mvdan.cc/sh/v3/syntax"
)

// Bounds of one command, and of one shell.
const (
	MaxSource    = 16 << 10         // bytes of a command
	maxNesting   = 100              // brackets within each other
	maxKeywords  = 500              // of if, while, ... in a command
	maxBraces    = 32               // expansions in one word, which multiply
	maxSteps     = 20_000           // simple commands and loop turns of one command
	maxTime      = 5 * time.Second  // of one command, pauses aside
	maxPause     = 10 * time.Second // of all sleeps of one command
	maxOutput    = 256 << 10        // bytes that one command writes
	maxExpanded  = 1 << 20          // bytes that expansions of one command read from variables
	maxValue     = 4 << 10          // bytes of a variable
	maxVariables = 256
	maxDepth     = 32 // functions, scripts and substitutions within each other
	maxHistory   = 200
)

// ErrIncomplete says that a command goes on in the next line.
var ErrIncomplete = errors.New("the command is not complete")

// errExhausted ends a command that reached a bound.
var errExhausted = errors.New("a bound is reached")

// Config is the machine that a shell pretends to run on.
type Config struct {
	Hostname string
	Release  Release
	User     string     // who logged in
	Address  netip.Addr // the machine's
	Client   netip.Addr // where the user comes from
	Now      func() time.Time
	Boot     time.Time
}

// Streams are what a command reads and writes.
type Streams struct {
	In       io.Reader
	Out, Err io.Writer
}

// Shell is one login.
type Shell struct {
	cfg      Config
	files    *files
	limits   *limits
	history  []string
	builtins map[string]builtin
	commands map[string]command
	panics   []string // of commands, for tests

	// What a subshell has a copy of.
	user      string
	dir       string
	variables map[string]variable
	functions map[string]*syntax.Stmt
	arguments []string
	status    int
	depth     int
	ended     bool
}

// limits are shared by a shell and its subshells; they are renewed for every
// command.
type limits struct {
	ctx      context.Context
	steps    int
	expanded int
	output   int
	paused   time.Duration
	costly   bool // the command has expansions that multiply what they read
}

// New begins a login.
func New(cfg Config) *Shell {
	s := &Shell{
		cfg: cfg, limits: &limits{}, user: cfg.User, builtins: builtinTable(), commands: commandTable(),
		variables: make(map[string]variable), functions: make(map[string]*syntax.Stmt), arguments: []string{"-bash"},
	}
	s.files = newFiles(cfg, s.commands)
	s.dir = homeOf(cfg.User)
	for name, value := range map[string]string{
		"HOME": s.dir, "USER": cfg.User, "LOGNAME": cfg.User, "SHELL": "/bin/bash", "PWD": s.dir, "LANG": "en_US.UTF-8",
		"PATH": searchPath(cfg.User), "TERM": "xterm-256color", "SHLVL": "1", "MAIL": "/var/mail/" + cfg.User,
		"SSH_CLIENT": fmt.Sprintf("%s 51442 22", cfg.Client), "SSH_CONNECTION": fmt.Sprintf("%s 51442 %s 22", cfg.Client, cfg.Address),
		"SSH_TTY": "/dev/pts/0",
	} {
		s.variables[name] = variable{value: value, exported: true}
	}
	for name, value := range map[string]string{"HISTFILE": s.dir + "/.bash_history", "HISTSIZE": "1000", "PS1": `\u@\h:\w\$ `, "BASH_VERSION": "5.2.15(1)-release", "HOSTNAME": cfg.Hostname, "UID": uidOf(cfg.User), "EUID": uidOf(cfg.User), "OSTYPE": "linux-gnu", "HOSTTYPE": "x86_64", "MACHTYPE": "x86_64-pc-linux-gnu"} {
		s.variables[name] = variable{value: value}
	}
	return s
}

// Greeting is what a login shows before its first prompt.
func (s *Shell) Greeting() string {
	return s.files.content("/etc/motd.rendered") +
		fmt.Sprintf("Last login: %s from %s\n", s.cfg.Now().Add(-41*time.Hour).UTC().Format("Mon Jan _2 15:04:05 2006"), lastClient(s.cfg.Client))
}

// lastClient is a neighbour of the client's address: who logged in last came
// from about the same place.
func lastClient(client netip.Addr) netip.Addr {
	if next := client.Next(); next.IsValid() {
		return next
	}
	return client
}

// Prompt is what stands before a command.
func (s *Shell) Prompt() string {
	dir := s.dir
	home := homeOf(s.user)
	if dir == home || strings.HasPrefix(dir, home+"/") {
		dir = "~" + strings.TrimPrefix(dir, home)
	}
	sign := "$"
	if s.user == "root" {
		sign = "#"
	}
	return fmt.Sprintf("%s@%s:%s%s ", s.user, s.cfg.Hostname, dir, sign)
}

// Done says whether the login ended, and with which status the last command did.
func (s *Shell) Done() (status int, done bool) { return s.status, s.ended }

// Execute runs one command, which may have several lines. It returns
// ErrIncomplete, and does nothing, if more lines have to come first.
func (s *Shell) Execute(ctx context.Context, source string, std Streams) error {
	defer func() {
		// The parser's library has its own opinions of what cannot be.
		if v := recover(); v != nil {
			s.panics = append(s.panics, fmt.Sprint(v))
			fmt.Fprintln(std.Err, "Segmentation fault")
			s.status = 139
		}
	}()
	parsed, err := parse(source)
	if syntax.IsIncomplete(err) {
		return ErrIncomplete
	}
	if text := strings.TrimSpace(source); text != "" {
		s.history = append(s.history, text[:min(len(text), maxValue)])
		if len(s.history) > maxHistory {
			s.history = s.history[1:]
		}
	}
	ctx, cancel := context.WithTimeout(ctx, maxTime+maxPause)
	defer cancel()
	*s.limits = limits{ctx: ctx}
	std = s.limits.bounded(std)
	if err != nil {
		fmt.Fprintf(std.Err, "-bash: %s\n", syntaxMessage(err, source))
		s.status = 2
		return nil
	}
	s.limits.costly = hasReplacement(parsed)
	switch err := s.statements(parsed.Stmts, std); {
	case errors.Is(err, errExhausted):
		fmt.Fprintln(std.Err, "Killed")
		s.status = 137
	case err != nil: // a break or return that nothing takes
		if leave, ok := errors.AsType[leave](err); ok && leave.kind == leaveShell {
			s.ended = true
		}
	}
	return nil
}

// errNested is what bash itself says, in the end, to such a command.
var errNested = errors.New("Segmentation fault")

// Incomplete says whether more lines have to come before source is a command.
func Incomplete(source string) (incomplete bool) {
	defer func() {
		if recover() != nil {
			incomplete = false
		}
	}()
	_, err := parse(source)
	return syntax.IsIncomplete(err)
}

// parse reads source as bash does and refuses what cannot be pretended, and what
// would take the parser, which follows nesting by recursion, too deep.
func parse(source string) (*syntax.File, error) {
	if len(source) > MaxSource || tooNested(source) {
		return nil, errNested
	}
	file, err := syntax.NewParser(syntax.Variant(syntax.LangBash)).Parse(strings.NewReader(source), "")
	if err != nil {
		return nil, err
	}
	var refused error
	syntax.Walk(file, func(n syntax.Node) bool {
		switch n.(type) {
		case *syntax.ProcSubst, *syntax.CoprocClause:
			refused = errors.New("cannot make pipe for process substitution: Too many open files")
		}
		return refused == nil
	})
	return file, refused
}

// tooNested counts whatever could open a level, quoted or not.
func tooNested(source string) bool {
	depth, run, braces, keywords := 0, 0, 0, 0
	for i := range len(source) {
		switch source[i] {
		case ' ', '\t', '\n':
			braces = 0
		case '{':
			braces++
			depth++
		case '(', '[', '`':
			depth++
		case ')', '}', ']':
			depth = max(depth-1, 0)
		}
		// Operators that bind to the right nest without brackets.
		if strings.IndexByte("-+~!?:*=", source[i]) >= 0 {
			run++
		} else if source[i] == ';' || source[i] == '\n' {
			run = 0
		}
		if depth > maxNesting || run > maxKeywords || braces > maxBraces {
			return true
		}
	}
	for word := range strings.FieldsSeq(source) {
		switch word {
		case "if", "while", "until", "for", "select", "case", "do", "then", "else", "time", "coproc", "function", "!":
			keywords++
		}
	}
	return keywords > maxKeywords
}

// hasReplacement finds expansions whose result may be the product of two values.
func hasReplacement(file *syntax.File) bool {
	found := false
	syntax.Walk(file, func(n syntax.Node) bool {
		if p, ok := n.(*syntax.ParamExp); ok && p.Repl != nil {
			found = true
		}
		return !found
	})
	return found
}

// syntaxMessage tells a fault of syntax in bash's words, as near as the parser's
// allow.
func syntaxMessage(err error, source string) string {
	fault, ok := errors.AsType[syntax.ParseError](err)
	if !ok {
		return err.Error()
	}
	token := "newline"
	lines := strings.Split(source, "\n")
	if line, column := int(fault.Pos.Line())-1, int(fault.Pos.Col())-1; line >= 0 && line < len(lines) && column >= 0 && column < len(lines[line]) {
		if fields := strings.Fields(lines[line][column:]); len(fields) > 0 {
			token = fields[0][:min(len(fields[0]), 64)]
		}
	}
	return fmt.Sprintf("syntax error near unexpected token `%s'", token)
}

// step counts something done, and says when it is enough.
func (l *limits) step() error {
	l.steps++
	if l.steps > maxSteps || l.output > maxOutput || l.expanded > maxExpanded || l.ctx.Err() != nil {
		return errExhausted
	}
	return nil
}

// pause waits as sleep does, as long as the command may.
func (l *limits) pause(d time.Duration) {
	d = min(d, maxPause-l.paused)
	if d <= 0 {
		return
	}
	l.paused += d
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-l.ctx.Done():
	}
}

// bounded makes streams that write no more than a command may.
func (l *limits) bounded(std Streams) Streams {
	return Streams{std.In, &boundedWriter{l, std.Out}, &boundedWriter{l, std.Err}}
}

type boundedWriter struct {
	limits *limits
	to     io.Writer
}

func (w *boundedWriter) Write(p []byte) (int, error) {
	room := maxOutput - w.limits.output
	w.limits.output += len(p)
	if room <= 0 {
		return 0, errExhausted
	}
	if len(p) > room {
		w.to.Write(p[:room])
		return room, errExhausted
	}
	return w.to.Write(p)
}

// buffer collects output within the same bounds.
func (l *limits) buffer() (*bytes.Buffer, io.Writer) {
	var b bytes.Buffer
	return &b, &boundedWriter{l, &b}
}

// subshell is a copy whose changes are lost, but for files.
func (s *Shell) subshell() *Shell {
	sub := *s
	sub.variables = make(map[string]variable, len(s.variables))
	for name, v := range s.variables {
		sub.variables[name] = v
	}
	sub.functions = make(map[string]*syntax.Stmt, len(s.functions))
	for name, f := range s.functions {
		sub.functions[name] = f
	}
	sub.depth++
	return &sub
}

// absolute is a path seen from the working directory.
func (s *Shell) absolute(name string) string {
	if !strings.HasPrefix(name, "/") {
		name = s.dir + "/" + name
	}
	return path.Clean(name)
}

func homeOf(user string) string {
	if user == "root" {
		return "/root"
	}
	return "/home/" + user
}

func uidOf(user string) string {
	if user == "root" {
		return "0"
	}
	return "1000"
}

func searchPath(user string) string {
	if user == "root" {
		return "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
	}
	return "/usr/local/bin:/usr/bin:/bin:/usr/local/games:/usr/games"
}
