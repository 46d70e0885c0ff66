package container

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"time"
)

// Limits of patience with a socket.
const (
	answerWithin = 10 * time.Second
	// quietAtMost is how long a stream of events may say nothing before everything is
	// listed anew: what was lost without a word is found then.
	quietAtMost = time.Minute
	// A container that the socket does not tell about is asked for again this often,
	// this long after.
	mostRefusals = 3
	askAgain     = 100 * time.Millisecond
)

// Runtime speaks to one socket.
type Runtime struct {
	socket  string
	client  *http.Client
	product string
}

// New returns a reader of the socket at a path. Nothing is asked yet.
func New(socket string) *Runtime {
	dialer := net.Dialer{Timeout: answerWithin}
	return &Runtime{socket: socket, client: &http.Client{
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		Transport: &http.Transport{
			DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
				return dialer.DialContext(ctx, "unix", socket)
			},
			ResponseHeaderTimeout: answerWithin, MaxResponseHeaderBytes: 1 << 16, DisableCompression: true, MaxIdleConns: 4,
			IdleConnTimeout: quietAtMost,
		}}}
}

// Close lets go of idle connections.
func (r *Runtime) Close() { r.client.CloseIdleConnections() }

// What a runtime may answer instead of what it was asked for.
var (
	errGone    = errors.New("not there") // (any more)
	errRefused = errors.New("the runtime refuses")
)

// get asks for a path and returns at most limit bytes; more is an error.
func (r *Runtime) get(ctx context.Context, path string, query url.Values, limit int64) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, answerWithin)
	defer cancel()
	body, err := r.open(ctx, path, query)
	if err != nil {
		return nil, err
	}
	defer body.Close()
	data, err := io.ReadAll(io.LimitReader(body, limit+1))
	if err != nil {
		return nil, fmt.Errorf("GET %s: %w", path, err)
	}
	if int64(len(data)) > limit {
		return nil, fmt.Errorf("GET %s: the answer is longer than %d bytes", path, limit)
	}
	return data, nil
}

func (r *Runtime) open(ctx context.Context, path string, query url.Values) (io.ReadCloser, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://runtime"+path+"?"+query.Encode(), nil)
	if err != nil {
		return nil, err
	}
	response, err := r.client.Do(request)
	if err != nil {
		return nil, fmt.Errorf("GET %s: %w", path, cause(err))
	}
	if response.StatusCode == http.StatusOK {
		return response.Body, nil
	}
	defer response.Body.Close()
	words, _ := io.ReadAll(io.LimitReader(response.Body, 512))
	if response.StatusCode == http.StatusNotFound {
		return nil, fmt.Errorf("GET %s: %w", path, errGone)
	}
	return nil, fmt.Errorf("GET %s: %w: %d %.200q", path, errRefused, response.StatusCode, bytes.TrimSpace(words))
}

// cause leaves out the URL, which is none.
func cause(err error) error {
	var wrapped *url.Error
	if errors.As(err, &wrapped) {
		return wrapped.Err
	}
	return err
}

// list asks for everything.
func (r *Runtime) list(ctx context.Context) (*contents, error) {
	data, err := r.get(ctx, "/version", nil, mostObject)
	if err != nil {
		return nil, err
	}
	if r.product, err = parseVersion(data); err != nil {
		return nil, err
	}
	all := &contents{containers: map[string]Container{}, refused: map[string]int{}}
	if err := r.listNetworks(ctx, all); err != nil {
		return nil, err
	}
	if err := r.listPods(ctx, all); err != nil {
		return nil, err
	}
	// Those that ended are left out: there may be thousands.
	states := `{"status":["created","running","paused","restarting"]}`
	if r.product == podman {
		states = `{"status":["created","initialized","running","paused"]}`
	}
	living := url.Values{"all": {"true"}, "filters": {states}}
	data, err = r.get(ctx, "/containers/json", living, mostList)
	if errors.Is(err, errRefused) {
		// A version that knows these states by other words: inspecting tells.
		data, err = r.get(ctx, "/containers/json", url.Values{"all": {"true"}}, mostList)
	}
	if err != nil {
		return nil, err
	}
	ids, left, err := parseList(data)
	if err != nil {
		return nil, err
	}
	all.left = left
	for _, id := range ids {
		if err := r.inspect(ctx, all, id); err != nil {
			return nil, err
		}
	}
	return all, nil
}

func (r *Runtime) listNetworks(ctx context.Context, all *contents) error {
	path, parse := "/networks", parseNetworks
	if r.product == podman {
		path, parse = "/v4.0.0/libpod/networks/json", parsePodmanNetworks
	}
	data, err := r.get(ctx, path, nil, mostList)
	if err != nil {
		return err
	}
	all.networks, err = parse(data)
	return err
}

func (r *Runtime) listPods(ctx context.Context, all *contents) error {
	if r.product != podman {
		return nil
	}
	data, err := r.get(ctx, "/v4.0.0/libpod/pods/json", nil, mostList)
	if err != nil {
		return err
	}
	all.pods, err = parsePods(data)
	return err
}

// inspect brings what is known of one container up to date. An answer that cannot
// be read leaves it out: it does not speak for the others.
func (r *Runtime) inspect(ctx context.Context, all *contents, id string) error {
	data, err := r.get(ctx, "/containers/"+id+"/json", nil, mostObject)
	switch {
	case errors.Is(err, errGone):
		delete(all.containers, id)
		delete(all.refused, id)
		return nil
	case errors.Is(err, errRefused):
		// podman says so, too, while it removes one. What was known stays meanwhile.
		if all.refused[id]++; all.refused[id] > mostRefusals {
			delete(all.containers, id)
			delete(all.refused, id)
			all.left++
		}
		return nil
	case err != nil:
		return err
	}
	delete(all.refused, id)
	c, err := parseContainer(data)
	delete(all.containers, id)
	switch {
	case errors.Is(err, errEnded):
	case err != nil || c.ID != id || len(all.containers) >= mostContainers:
		all.left++
	default:
		all.containers[id] = c
	}
	return nil
}

// events opens the stream of events. It ends with ctx only.
func (r *Runtime) events(ctx context.Context) (*bufio.Reader, io.Closer, error) {
	body, err := r.open(ctx, "/events", url.Values{"filters": {`{"type":["container","network","pod"]}`}})
	if err != nil {
		return nil, nil, err
	}
	return bufio.NewReaderSize(body, 1<<16), body, nil
}
