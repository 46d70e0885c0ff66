package api

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus/promhttp"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// readyLimit bounds the checks behind /readyz.
const readyLimit = 5 * time.Second

// serveHealth answers those who ask whether the server works, whoever they are.
func (s *Server) serveHealth(c *call) bool {
	switch c.r.URL.Path {
	case "/livez", "/healthz":
		writeBytes(c.w, http.StatusOK, "text/plain; charset=utf-8", []byte("ok"))
	case "/readyz":
		s.serveReady(c)
	default:
		return false
	}
	return true
}

// serveReady runs every check and names those that fail; ?verbose names all.
func (s *Server) serveReady(c *call) {
	ctx, cancel := context.WithTimeout(c.r.Context(), readyLimit)
	defer cancel()
	checks := map[string]func(context.Context) error{
		"store": func(ctx context.Context) error {
			if asked, ok := s.config.Store.(interface{ Responsive(context.Context) error }); ok {
				return asked.Responsive(ctx)
			}
			_, err := s.view.now(ctx)
			return err
		},
		"view": func(context.Context) error {
			if _, filled := s.view.position(); !filled {
				return errors.New("what there is has not been read yet")
			}
			return nil
		},
		"running": func(context.Context) error {
			if s.isClosing() {
				return fmt.Errorf("the server is being stopped")
			}
			return nil
		},
	}
	var names []string
	for name, check := range s.config.Ready {
		checks[name] = check
	}
	for name := range checks {
		names = append(names, name)
	}
	slices.Sort(names)
	var lines bytes.Buffer
	failed := false
	for _, name := range names {
		if err := checks[name](ctx); err != nil {
			failed = true
			fmt.Fprintf(&lines, "[-]%s failed: %v\n", name, err)
		} else {
			fmt.Fprintf(&lines, "[+]%s ok\n", name)
		}
	}
	if s.signOn != nil {
		// Others can log in and everything goes on: that is no reason to be sent away.
		if err := s.signOn.health(); err != nil {
			fmt.Fprintf(&lines, "[!]single-sign-on does not work: %v\n", err)
		} else {
			lines.WriteString("[+]single-sign-on ok\n")
		}
	}
	for _, name := range slices.Sorted(maps.Keys(s.config.Advice)) {
		if advice := s.config.Advice[name](); advice != "" {
			fmt.Fprintf(&lines, "[!]%s: %s\n", name, advice)
		}
	}
	switch {
	case failed:
		lines.WriteString("readyz check failed\n")
		writeBytes(c.w, http.StatusServiceUnavailable, "text/plain; charset=utf-8", lines.Bytes())
	case c.query.Has("verbose"):
		lines.WriteString("readyz check passed\n")
		writeBytes(c.w, http.StatusOK, "text/plain; charset=utf-8", lines.Bytes())
	default:
		writeBytes(c.w, http.StatusOK, "text/plain; charset=utf-8", []byte("ok"))
	}
}

func (s *Server) serveMetrics(c *call) error {
	if c.person.confined() {
		// They count what happens in every namespace.
		return newProblem(http.StatusForbidden, metav1.StatusReasonForbidden,
			"User %q cannot read metrics: they are about all namespaces, and theirs is a role in some", c.person.Name)
	}
	promhttp.HandlerFor(s.config.Registry, promhttp.HandlerOpts{MaxRequestsInFlight: 4}).ServeHTTP(c.w, c.r)
	return nil
}
