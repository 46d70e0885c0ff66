package shell

import (
	"bytes"
	"fmt"
	"io"
	"strings"

	"mvdan.cc/sh/v3/expand"
	"mvdan.cc/sh/v3/syntax"
)

// redirect opens what a statement's redirections name. done keeps what was
// written; it is nil if one failed, which is told.
func (s *Shell) redirect(list []*syntax.Redirect, std Streams) (_ Streams, done func(), err error) {
	if len(list) == 0 {
		return std, func() {}, nil
	}
	plain := std
	var closers []func()
	for _, r := range list {
		fd := ""
		if r.N != nil {
			fd = r.N.Value
		}
		if r.Hdoc != nil {
			text, err := expand.Document(s.expansion(std), r.Hdoc)
			if err != nil {
				return plain, nil, s.fault(plain, err)
			}
			if r.Op == syntax.DashHdoc {
				text = strings.ReplaceAll("\n"+text, "\n\t", "\n")[1:]
			}
			std.In = strings.NewReader(text)
			continue
		}
		target, err := s.literal(std, r.Word)
		if err != nil {
			return plain, nil, s.fault(plain, err)
		}
		switch r.Op {
		case syntax.WordHdoc:
			std.In = strings.NewReader(target + "\n")
		case syntax.RdrIn:
			in, err := s.open(target)
			if err != nil {
				return plain, nil, s.fault(plain, err)
			}
			std.In = in
		case syntax.DplIn:
		case syntax.DplOut:
			switch {
			case target == "1" && fd == "2":
				std.Err = std.Out
			case target == "2" && fd != "2":
				std.Out = std.Err
			case target == "-" && fd == "2":
				std.Err = io.Discard
			case target == "-":
				std.Out = io.Discard
			}
		default: // >, >>, >|, &>, &>>, <>
			appends := r.Op == syntax.AppOut || r.Op == syntax.AppAll
			to, closer, err := s.create(target, appends)
			if err != nil {
				return plain, nil, s.fault(plain, err)
			}
			closers = append(closers, closer)
			switch {
			case r.Op == syntax.RdrAll || r.Op == syntax.AppAll:
				std.Out, std.Err = to, to
			case fd == "2":
				std.Err = to
			case fd == "" || fd == "1":
				std.Out = to
			}
		}
	}
	return std, func() {
		for _, closer := range closers {
			closer()
		}
	}, nil
}

// pathError is what bash says of a path.
func pathError(name, text string) error { return fmt.Errorf("%s: %s", name, text) }

func (s *Shell) open(name string) (io.Reader, error) {
	if strings.HasPrefix(name, "/dev/tcp/") || strings.HasPrefix(name, "/dev/udp/") {
		s.limits.pause(maxPause)
		return nil, fmt.Errorf("connect: Connection timed out\n-bash: %s: Connection timed out", name)
	}
	f := s.files.get(s.absolute(name))
	switch {
	case f == nil:
		return nil, pathError(name, "No such file or directory")
	case f.dir:
		return nil, pathError(name, "Is a directory")
	case f.private && s.user != "root":
		return nil, pathError(name, "Permission denied")
	}
	return strings.NewReader(f.content), nil
}

// create opens a file to write; what was written is kept when closed.
func (s *Shell) create(name string, appends bool) (io.Writer, func(), error) {
	where := s.absolute(name)
	switch {
	case where == "/dev/null" || strings.HasPrefix(where, "/dev/pts/") || where == "/dev/tty":
		return io.Discard, func() {}, nil
	case strings.HasPrefix(where, "/dev/tcp/") || strings.HasPrefix(where, "/dev/udp/"):
		s.limits.pause(maxPause)
		return nil, nil, fmt.Errorf("connect: Connection timed out\n-bash: %s: Connection timed out", name)
	}
	if err := s.mayWrite(where); err != "" {
		return nil, nil, pathError(name, err)
	}
	var b bytes.Buffer
	if f := s.files.get(where); appends && f != nil {
		b.WriteString(f.content)
	}
	if err := s.files.write(where, b.String(), s.user, s.cfg.Now()); err != "" {
		return nil, nil, pathError(name, err)
	}
	return &boundedWriter{s.limits, &b}, func() { s.files.write(where, b.String(), s.user, s.cfg.Now()) }, nil
}
