package api

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"strconv"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"bocage.dev/bocage/api/audit"
)

// Every change, and every attempt at one, stands in the audit trail before
// anybody is told of its outcome. While the trail cannot be written nothing is
// changed.

// recorder remembers the code of an answer. One that is held goes out when it is
// released.
type recorder struct {
	http.ResponseWriter
	code  int
	began bool

	held bool
	body bytes.Buffer
}

func (r *recorder) WriteHeader(code int) {
	if !r.began {
		r.code, r.began = code, true
	}
	if !r.held {
		r.ResponseWriter.WriteHeader(code)
	}
}

func (r *recorder) Write(data []byte) (int, error) {
	r.began = true
	if r.held {
		return r.body.Write(data)
	}
	return r.ResponseWriter.Write(data)
}

// Unwrap lets http.ResponseController reach the connection.
func (r *recorder) Unwrap() http.ResponseWriter { return r.ResponseWriter }

// discard takes back an answer that is held.
func (r *recorder) discard() {
	r.body.Reset()
	r.code, r.began = http.StatusOK, false
	clear(r.Header())
}

func (r *recorder) release() {
	if !r.held {
		return
	}
	r.held = false
	r.ResponseWriter.WriteHeader(r.code)
	_, _ = r.ResponseWriter.Write(r.body.Bytes())
}

// mayChangeThings says whether a request, before it is understood, may be one
// that the trail has to hold.
func mayChangeThings(r *http.Request) bool {
	switch path := r.URL.Path; {
	case r.Method == http.MethodGet || r.Method == http.MethodHead,
		path == functionsPath+"/plan", path == functionsPath+"/test",
		strings.HasPrefix(path, "/apis/authorization.k8s.io/"), strings.HasPrefix(path, "/apis/authentication.k8s.io/"):
		return false
	}
	return true
}

// writable refuses changes while the trail cannot be written. Trying is the only
// way to know whether it can be again.
func (s *Server) writable(ctx context.Context) error {
	if s.trail == nil || s.trail.Fault() == nil {
		return nil
	}
	err := s.trail.Append(ctx, audit.Entry{Who: systemName, Verb: "recover", Message: "the trail can be written again"})
	if err != nil {
		return unrecorded(err)
	}
	return nil
}

func unrecorded(err error) *problem {
	return newProblem(http.StatusInsufficientStorage, metav1.StatusReasonInternalError, "%v", err)
}

// auditLevel is how loud the log tells changes: without a trail it is all there is.
func (s *Server) auditLevel() slog.Level {
	if s.trail == nil {
		return slog.LevelInfo
	}
	return slog.LevelDebug
}

const systemName = "system:api"

// note keeps an entry until the answer is known.
func (c *call) note(a access, name, outcome string, code int, value []byte) {
	e := audit.Entry{Verb: a.verb, Resource: a.kind.Plural, Namespace: a.namespace, Name: name, Code: code}
	switch {
	case a.kind.Plural == "":
		e.Resource = c.verb // a function's name
		e.Message = outcome
	case a.subresource != "":
		e.Resource += "/" + a.subresource
	}
	if len(value) > 0 {
		sum := sha256.Sum256(value)
		e.Object = hex.EncodeToString(sum[:])
	}
	c.entries = append(c.entries, e)
}

const (
	// Strangers who knock are named in the trail up to a rate, so that they cannot
	// fill the disk.
	strangersPerSecond = 1
	strangersAtOnce    = 100
)

// noteTurnedAway keeps that somebody unknown, or somebody who would have been another,
// tried to change something: what, nobody has looked at.
func (c *call) noteTurnedAway() {
	if mayChangeThings(c.r) {
		path := c.r.URL.Path
		c.entries = append(c.entries, audit.Entry{Verb: strings.ToLower(c.r.Method), Resource: path[:min(len(path), 253)]})
	}
}

// record puts what a request did into the trail.
func (s *Server) record(c *call, code int, problem string) error {
	if s.trail == nil || len(c.entries) == 0 || c.person.Name == "" && !s.strangers.Allow() {
		return nil
	}
	from := remote(c.r)
	if from == "socket" {
		from = "local"
	} else if host, _, err := net.SplitHostPort(from); err == nil {
		from = host
	}
	for i := range c.entries {
		e := &c.entries[i]
		e.Who, e.Role, e.From, e.DryRun = c.person.Name, c.person.rolesText(), from, c.dryRun
		if e.Who == "" {
			e.Who = "stranger"
		}
		if e.Code == 0 {
			e.Code = code
			switch {
			case problem != "" && c.saying != "":
				e.Message = problem + ": " + c.saying
			case problem != "":
				e.Message = problem
			case e.Message == "":
				e.Message = c.saying
			}
		}
	}
	// A client that left changes nothing about what was done.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(c.r.Context()), writeLimit)
	defer cancel()
	return s.trail.Append(ctx, c.entries...)
}

// serveAudit streams the trail of this controller, one entry a line, from a
// sequence number on.
func (s *Server) serveAudit(c *call) error {
	if err := c.mustBe(RoleAdmin, RoleAuditor); err != nil {
		return err
	}
	var from uint64
	if text := c.query.Get("from"); text != "" {
		var err error
		if from, err = strconv.ParseUint(text, 10, 64); err != nil {
			return badRequest("from %q is not the number of an entry", text)
		}
	}
	if s.trail == nil {
		return notWired("keep an audit trail")
	}
	answer := http.NewResponseController(c.w)
	if err := endless(answer); err != nil {
		return err
	}
	c.w.Header().Set("Content-Type", "application/jsonl")
	lines := bufio.NewWriterSize(c.w, 64<<10)
	encoder := json.NewEncoder(lines)
	sent := 0
	err := s.trail.Read(from, func(e audit.Entry) error {
		if sent++; sent%1000 == 0 {
			if err := answer.SetWriteDeadline(time.Now().Add(writeLimit)); err != nil {
				return err
			}
			if err := c.r.Context().Err(); err != nil {
				return err
			}
		}
		return encoder.Encode(e)
	})
	var broken *audit.Break
	switch {
	case errors.As(err, &broken):
		// The client learns where, as the last line.
		_ = encoder.Encode(newProblem(http.StatusInternalServerError, metav1.StatusReasonInternalError, "the trail is damaged: %v", broken).Status)
	case errors.Is(err, fs.ErrNotExist):
	case err != nil && sent == 0:
		return err
	case err != nil:
		return err
	}
	if err := answer.SetWriteDeadline(time.Now().Add(writeLimit)); err != nil {
		return err
	}
	_ = lines.Flush()
	return nil
}

// serveAnchors tells the newest hash that the store has of every controller's
// trail, and which controller this is.
func (s *Server) serveAnchors(c *call) error {
	if err := c.mustBe(RoleAdmin, RoleAuditor); err != nil {
		return err
	}
	found, err := audit.ReadAnchors(c.r.Context(), s.config.Store)
	if err != nil {
		return err
	}
	writeJSON(c.w, http.StatusOK, map[string]any{"node": s.config.Node, "anchors": found})
	return nil
}
