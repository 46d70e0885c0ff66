package ssh

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"bocage.dev/bocage"
	"bocage.dev/bocage/deception/shell"
)

// maxLine is the most that a terminal's line holds (N_TTY_BUF_SIZE of Linux).
const maxLine = 4096

// newShell is the shell of who got in.
func (a *channels) newShell() *shell.Shell {
	c := a.session
	return shell.New(shell.Config{
		Hostname: hostnameOf(c.victim.String()), Release: shell.ReleaseOf(c.server.banner), User: a.user,
		Address: c.victim, Client: c.source, Now: time.Now, Boot: c.server.boot,
	})
}

// hostnameOf is a name as clouds give: made of the address.
func hostnameOf(address string) string {
	return "ip-" + strings.Trim(strings.NewReplacer(".", "-", ":", "-").Replace(address), "-")
}

// recordCommand tells a command before it is run.
func (ch *channel) recordCommand(command string, interactive bool) {
	ch.all.session.report(bocage.DepthCommand, map[string]string{
		"user": ch.all.user, "command": command, "interactive": strconv.FormatBool(interactive),
	})
}

// execute runs one command that came instead of a shell.
func (ch *channel) execute(command string) {
	ch.recordCommand(command, false)
	sh := ch.all.newShell()
	std := shell.Streams{In: ch, Out: stream{ch, 0}, Err: stream{ch, 1}}
	if ch.terminal {
		terminal := &terminal{ch: ch}
		std = shell.Streams{In: terminal, Out: terminal, Err: terminal}
	}
	if err := sh.Execute(ch.all.ctx, command, std); errors.Is(err, shell.ErrIncomplete) {
		fmt.Fprintln(std.Err, "bash: -c: line 2: syntax error: unexpected end of file")
		ch.exit(2)
		return
	}
	status, _ := sh.Done()
	ch.exit(status)
}

// interact is a login shell, with a terminal or fed by a pipe.
func (ch *channel) interact() {
	sh := ch.all.newShell()
	if !ch.terminal {
		ch.feed(sh)
		return
	}
	t := &terminal{ch: ch}
	t.say(sh.Greeting())
	source := ""
	for {
		prompt := sh.Prompt()
		if source != "" {
			prompt = "> "
		}
		line, err := t.line(prompt)
		if errors.Is(err, errInterrupted) {
			source = ""
			continue
		}
		if err != nil {
			break
		}
		source = ch.run(sh, source+line, shell.Streams{In: t, Out: t, Err: t}, true)
		if _, done := sh.Done(); done || len(source) > shell.MaxSource {
			break
		}
	}
	t.say("logout\n")
	status, _ := sh.Done()
	ch.exit(status)
}

// feed runs what comes through a pipe, line by line.
func (ch *channel) feed(sh *shell.Shell) {
	std := shell.Streams{In: ch, Out: stream{ch, 0}, Err: stream{ch, 1}}
	source := ""
	for {
		line, err := readLine(ch)
		if line == "" && err != nil {
			break
		}
		source = ch.run(sh, source+line, std, false)
		if _, done := sh.Done(); done || err != nil || len(source) > shell.MaxSource {
			break
		}
	}
	status, _ := sh.Done()
	ch.exit(status)
}

// run runs source if it is whole, and gives what is still to be completed.
func (ch *channel) run(sh *shell.Shell, source string, std shell.Streams, interactive bool) (rest string) {
	if strings.TrimSpace(source) == "" {
		return ""
	}
	if shell.Incomplete(source) {
		return source + "\n"
	}
	ch.recordCommand(source, interactive)
	sh.Execute(ch.all.ctx, source, std)
	return ""
}

// readLine reads up to a line's end, which it leaves out.
func readLine(r io.Reader) (string, error) {
	var line []byte
	one := make([]byte, 1)
	for len(line) < shell.MaxSource {
		if n, err := r.Read(one); n == 0 && err != nil {
			return string(line), err
		}
		if one[0] == '\n' {
			break
		}
		line = append(line, one[0])
	}
	return string(line), nil
}

// stream writes to a channel as output (0) or as error output (1).
type stream struct {
	ch   *channel
	kind uint32
}

func (s stream) Write(p []byte) (int, error) { return s.ch.write(s.kind, p) }

// errInterrupted is Ctrl-C.
var errInterrupted = errors.New("interrupted")

// terminal is a line discipline: it echoes, edits one line, and turns LF into
// CR LF on the way out.
type terminal struct {
	ch      *channel
	history []string
	pending []byte // of a line that was entered and is not read whole
}

func (t *terminal) say(text string) { t.Write([]byte(text)) }

func (t *terminal) Write(p []byte) (int, error) {
	if _, err := t.ch.write(0, bytes.ReplaceAll(p, []byte("\n"), []byte("\r\n"))); err != nil {
		return 0, err
	}
	return len(p), nil
}

// Read is for a program that reads its terminal: line by line.
func (t *terminal) Read(p []byte) (int, error) {
	if len(t.pending) == 0 {
		line, err := t.line("")
		if err != nil {
			return 0, io.EOF
		}
		t.pending = []byte(line + "\n")
	}
	n := copy(p, t.pending)
	t.pending = t.pending[n:]
	return n, nil
}

// Keys that edit a line.
const (
	keyInterrupt = 3
	keyEnd       = 4
	keyBackspace = 8
	keyTab       = 9
	keyKill      = 21
	keyWord      = 23
	keyEscape    = 27
	keyDelete    = 127
)

// line reads one line after a prompt.
func (t *terminal) line(prompt string) (string, error) {
	t.say(prompt)
	var line []byte
	back := len(t.history) // where in the history the line comes from
	one := make([]byte, 1)
	replace := func(with string) {
		t.say(strings.Repeat("\b \b", len(line)) + with)
		line = []byte(with)
	}
	for {
		if _, err := t.ch.Read(one); err != nil {
			return "", err
		}
		switch b := one[0]; {
		case b == '\r' || b == '\n':
			t.say("\n")
			if len(line) > 0 && prompt != "" {
				if t.history = append(t.history, string(line)); len(t.history) > 100 {
					t.history = t.history[1:]
				}
			}
			return string(line), nil
		case b == keyInterrupt:
			t.say("^C\n")
			return "", errInterrupted
		case b == keyEnd && len(line) == 0:
			return "", io.EOF
		case b == keyBackspace || b == keyDelete:
			if len(line) > 0 {
				line = line[:len(line)-1]
				t.say("\b \b")
			}
		case b == keyKill:
			replace("")
		case b == keyWord:
			kept := strings.TrimRight(string(line), " ")
			replace(kept[:strings.LastIndexByte(kept, ' ')+1])
		case b == keyEscape:
			switch t.escape() {
			case 'A':
				if back > 0 {
					back--
					replace(t.history[back])
				}
			case 'B':
				if back < len(t.history)-1 {
					back++
					replace(t.history[back])
				}
			}
		case b >= ' ' && len(line) < maxLine-1:
			line = append(line, b)
			t.ch.write(0, one)
		}
	}
}

// escape reads the rest of an escape sequence and gives its last byte.
func (t *terminal) escape() byte {
	one := make([]byte, 1)
	for range 16 {
		if _, err := t.ch.Read(one); err != nil {
			return 0
		}
		if b := one[0]; b >= '@' && b != '[' && b != 'O' {
			return b
		}
	}
	return 0
}
