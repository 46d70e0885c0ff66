package client

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/url"
	"strings"
	"time"

	"bocage.dev/bocage"
)

// Event is one change that a watch shows.
type Event struct {
	// Type is Added, Modified or Deleted.
	Type   EventType
	Object bocage.Resource
}

// EventType says what became of an object.
type EventType string

// Types of event.
const (
	Added    EventType = "ADDED"
	Modified EventType = "MODIFIED"
	Deleted  EventType = "DELETED"
)

// Watch gives each change to each, beginning with what is there, until ctx ends
// or each fails. A watch that ends or breaks is resumed where it was; if that is
// too long ago, what is there is shown again, and objects that went meanwhile
// are not told of.
func (c *Client) Watch(ctx context.Context, kind bocage.Kind, options ListOptions, each func(Event) error) error {
	return c.WatchFrom(ctx, kind, options, "", each)
}

// WatchFrom is Watch from the revision of a list on.
func (c *Client) WatchFrom(ctx context.Context, kind bocage.Kind, options ListOptions, revision string, each func(Event) error) error {
	var pause pause
	for {
		began := time.Now()
		err := c.watchOnce(ctx, kind, options, &revision, each)
		var fatal *eachError
		var answer *Error
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case errors.As(err, &fatal):
			return fatal.err
		case errors.As(err, &answer) && answer.Code == http.StatusGone:
			revision = ""
		case errors.As(err, &answer) && answer.Code < 500 && answer.Code != http.StatusTooManyRequests:
			return err
		}
		if err := pause.after(ctx, began); err != nil {
			return err
		}
	}
}

// pause is the time between attempts to follow the server. It grows while they
// end at once.
type pause time.Duration

// after waits before the attempt that follows one that began then, until ctx ends.
func (p *pause) after(ctx context.Context, began time.Time) error {
	if time.Since(began) > 10*time.Second {
		*p = 0
	}
	wait := min(max(2*time.Duration(*p), 100*time.Millisecond), 10*time.Second)
	*p = pause(wait)
	select {
	case <-time.After(wait/2 + rand.N(wait)):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// eachError tells the caller's failures from the connection's.
type eachError struct{ err error }

func (e *eachError) Error() string { return e.err.Error() }

func (c *Client) watchOnce(ctx context.Context, kind bocage.Kind, options ListOptions, revision *string, each func(Event) error) error {
	query := options.query()
	query.Set("watch", "true")
	query.Set("allowWatchBookmarks", "true")
	if *revision == "" {
		query.Set("sendInitialEvents", "true")
		query.Set("resourceVersionMatch", "NotOlderThan")
	} else {
		query.Set("resourceVersion", *revision)
	}
	body, err := c.open(ctx, request{method: http.MethodGet, path: collectionPath(kind, options.Namespace), query: query, stream: true})
	if err != nil {
		return err
	}
	defer body.Close()
	// Until the initial events are complete, the only way to resume is anew.
	complete := *revision != ""
	return eachLine(body, func(line []byte) error {
		var event struct {
			Type   EventType       `json:"type"`
			Object json.RawMessage `json:"object"`
		}
		if err := json.Unmarshal(line, &event); err != nil {
			return fmt.Errorf("read an event: %w", err)
		}
		if event.Type == "ERROR" {
			var s status
			if err := json.Unmarshal(event.Object, &s); err != nil {
				return fmt.Errorf("read an event: %w", err)
			}
			return s.err()
		}
		object := kind.New()
		if err := json.Unmarshal(event.Object, object); err != nil {
			return fmt.Errorf("read a %s: %w", kind.Name, err)
		}
		if event.Type == "BOOKMARK" {
			complete = true
		} else if err := each(Event{event.Type, object}); err != nil {
			return &eachError{err}
		}
		if complete {
			*revision = object.Meta().ResourceVersion
		}
		return nil
	})
}

// eachLine reads lines of bounded length.
func eachLine(body io.Reader, each func([]byte) error) error {
	scanner := bufio.NewScanner(body)
	scanner.Buffer(make([]byte, 64<<10), maxLine)
	for scanner.Scan() {
		if len(scanner.Bytes()) == 0 {
			continue
		}
		if err := each(scanner.Bytes()); err != nil {
			return err
		}
	}
	return scanner.Err()
}

// errDone ends a watch from within.
var errDone = errors.New("done")

// WaitCondition waits until an object's condition has a status such as True for
// its present generation, and returns the condition: also with an error, what was
// said of it last.
func (c *Client) WaitCondition(ctx context.Context, kind bocage.Kind, namespace, name, condition, status string) (bocage.Condition, error) {
	var said bocage.Condition
	last := "it is not there"
	err := c.Watch(ctx, kind, ListOptions{Namespace: namespace, FieldSelector: "metadata.name=" + name}, func(e Event) error {
		data, err := json.Marshal(e.Object)
		if err != nil {
			return err
		}
		var object struct {
			Status struct {
				Conditions []bocage.Condition `json:"conditions"`
			} `json:"status"`
		}
		if err := json.Unmarshal(data, &object); err != nil {
			return err
		}
		last = "nothing is said of it"
		for _, found := range object.Status.Conditions {
			if !strings.EqualFold(found.Type, condition) {
				continue
			}
			said, last = found, fmt.Sprintf("it is %s: %s", found.Status, found.Message)
			current := found.ObservedGeneration == 0 || found.ObservedGeneration >= e.Object.Meta().Generation
			if e.Type != Deleted && current && strings.EqualFold(found.Status, status) {
				return errDone
			}
		}
		return nil
	})
	if errors.Is(err, errDone) {
		return said, nil
	}
	return said, fmt.Errorf("wait for %s=%s of %s %s (%s): %w", condition, status, kind.Name, name, last, err)
}

// Flows gives each record to each, until there are none left or, when following,
// until ctx ends.
func (c *Client) Flows(ctx context.Context, q bocage.FlowsQuery, each func(bocage.FlowRecord) error) error {
	body, err := c.open(ctx, request{method: http.MethodGet, path: functionsPath + "/flows", query: flowsQuery(q), stream: true})
	if err != nil {
		return err
	}
	defer body.Close()
	return eachLine(body, func(line []byte) error {
		var end status
		if json.Unmarshal(line, &end) == nil && end.Kind == "Status" {
			return end.err()
		}
		var record bocage.FlowRecord
		if err := json.Unmarshal(line, &record); err != nil {
			return fmt.Errorf("read a flow: %w", err)
		}
		return each(record)
	})
}

func flowsQuery(q bocage.FlowsQuery) url.Values {
	query := url.Values{}
	set := func(name, value string, given bool) {
		if given {
			query.Set(name, value)
		}
	}
	set("from", q.From, q.From != "")
	set("to", q.To, q.To != "")
	set("port", fmt.Sprint(q.Port), q.Port != 0)
	set("protocol", q.Protocol.String(), q.Protocol != bocage.ProtocolAny)
	set("verdict", q.Verdict.String(), q.Verdict != bocage.VerdictNone)
	set("wouldRefuse", "true", q.WouldRefuse)
	set("since", q.Since.UTC().Format(time.RFC3339Nano), !q.Since.IsZero())
	set("limit", fmt.Sprint(q.Limit), q.Limit > 0)
	set("follow", "true", q.Follow)
	return query
}
