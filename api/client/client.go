// Package client speaks to the api room for the command line, the console and
// the tests: typed by bocage.Kind, over a unix socket or HTTPS.
//
// It promises that an error keeps every fault that the server found, with field
// paths, and with file and line where the object came from a file. It retries
// nothing but a watch that broke, and keeps no copy but an [Informer]'s.
package client

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"bocage.dev/bocage"
)

const (
	functionsPath = "/apis/functions." + bocage.APIVersion
	// maxAnswer bounds one answer, watches and flows apart.
	maxAnswer = 1 << 30
	// manyTimeout is the least time that a request with many objects has.
	manyTimeout = 6 * time.Minute
	// effectSeconds is how long a write waits for what comes of it, where somebody wants
	// to know.
	effectSeconds = 2
	// maxLine bounds one event of a watch.
	maxLine = 16 << 20
)

// Config says where the server is and who asks.
type Config struct {
	// Socket is the path of the server's unix socket. It counts before Address.
	Socket string
	// Address is the server's, such as https://controller-1:8443.
	Address string
	// TLS verifies the server and shows the client's certificate; see
	// identity.ClientTLS.
	TLS *tls.Config
	// Token is a session's.
	Token string
	// Timeout bounds each request but watches and followed flows; zero is a minute.
	Timeout time.Duration
	// Held, if it is there, is told by writes that policy is held: what was written is
	// stored, and is not in force. Such writes wait a little for what comes of them.
	Held func(text string)
	// UserAgent names the program in the server's audit log; empty is "bocage".
	UserAgent string
}

// Client is safe for concurrent use.
type Client struct {
	config Config
	base   string
	http   *http.Client
}

// New makes a client. It does not connect yet.
func New(config Config) (*Client, error) {
	transport := &http.Transport{
		TLSClientConfig: config.TLS, ForceAttemptHTTP2: true, MaxIdleConnsPerHost: 8,
		TLSHandshakeTimeout: 10 * time.Second, IdleConnTimeout: 90 * time.Second,
	}
	dialer := &net.Dialer{Timeout: 10 * time.Second}
	transport.DialContext = dialer.DialContext
	base := strings.TrimSuffix(config.Address, "/")
	switch {
	case config.Socket != "":
		transport.DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) {
			return dialer.DialContext(ctx, "unix", config.Socket)
		}
		base = "http://bocage"
	case base == "":
		return nil, errors.New("neither a socket nor an address of the controller is given")
	case !strings.HasPrefix(base, "https://"):
		return nil, fmt.Errorf("the controller's address %q does not start with https://", config.Address)
	}
	if config.Timeout == 0 {
		config.Timeout = time.Minute
	}
	if config.UserAgent == "" {
		config.UserAgent = "bocage"
	}
	return &Client{config, base, &http.Client{Transport: transport}}, nil
}

// Close gives up idle connections.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// Error is the server's answer to what it did not do.
type Error struct {
	Code    int    // of HTTP
	Reason  string // such as NotFound, Conflict, Invalid
	Message string
	// Faults are all that was wrong with the request.
	Faults bocage.Faults

	applied []bocage.AppliedObject // of an apply that ended halfway
}

func (e *Error) Error() string {
	if len(e.Faults) > 0 {
		return e.Faults.Error()
	}
	return e.Message
}

// Unwrap gives the faults to errors.As.
func (e *Error) Unwrap() error { return e.Faults.Err() }

// HasReason reports whether err is the server's answer with a reason.
func HasReason(err error, reason string) bool {
	var e *Error
	return errors.As(err, &e) && e.Reason == reason
}

// Reasons that callers ask for.
const (
	ReasonNotFound      = "NotFound"
	ReasonAlreadyExists = "AlreadyExists"
	ReasonConflict      = "Conflict"
	ReasonInvalid       = "Invalid"
	ReasonForbidden     = "Forbidden"
	ReasonExpired       = "Expired"
)

// request is one HTTP request.
type request struct {
	method, path string
	query        url.Values
	contentType  string
	body         []byte
	accept       string
	stream       bool // the answer has no end by itself
	many         bool // it carries many objects, which take their time
}

// open sends a request and returns the answer's body if it is a success.
func (c *Client) open(ctx context.Context, r request) (io.ReadCloser, error) {
	cancel := func() {}
	if !r.stream {
		limit := c.config.Timeout
		if r.many {
			limit = max(limit, manyTimeout)
		}
		ctx, cancel = context.WithTimeout(ctx, limit)
	}
	target := c.base + r.path
	if len(r.query) > 0 {
		target += "?" + r.query.Encode()
	}
	hr, err := http.NewRequestWithContext(ctx, r.method, target, bytes.NewReader(r.body))
	if err != nil {
		cancel()
		return nil, err
	}
	hr.Header.Set("User-Agent", c.config.UserAgent)
	hr.Header.Set("Accept", "application/json")
	if r.accept != "" {
		hr.Header.Set("Accept", r.accept)
	}
	if r.contentType != "" {
		hr.Header.Set("Content-Type", r.contentType)
	}
	if c.config.Token != "" {
		hr.Header.Set("Authorization", "Bearer "+c.config.Token)
	}
	if c.config.Held != nil && r.method != http.MethodGet {
		hr.Header.Set("Prefer", "wait="+strconv.Itoa(effectSeconds))
	}
	answer, err := c.http.Do(hr)
	if err != nil {
		cancel()
		return nil, c.unreachable(err)
	}
	body := &answerBody{answer.Body, cancel}
	if answer.StatusCode/100 == 2 {
		c.tellHeld(answer.Header)
		return body, nil
	}
	defer body.Close()
	return nil, readError(answer)
}

type answerBody struct {
	io.ReadCloser
	cancel func()
}

func (b *answerBody) Close() error {
	defer b.cancel()
	return b.ReadCloser.Close()
}

// unreachable says what to do when nobody answers.
func (c *Client) unreachable(err error) error {
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	var u *url.Error
	if errors.As(err, &u) {
		err = u.Err
	}
	where := c.config.Address
	if c.config.Socket != "" {
		where = c.config.Socket
	}
	advice := "is it running? try: bocage doctor"
	var authority x509.UnknownAuthorityError
	var name x509.HostnameError
	switch {
	case errors.Is(err, fs.ErrPermission):
		advice = "the socket is root's and its group's: use --server and `bocage login`, or ask as root"
	case errors.As(err, &authority) || errors.As(err, &name):
		advice = "it is another's certificate: is --ca the trust bundle of that controller, and --trust-domain its own?"
	}
	return fmt.Errorf("reach the controller at %s: %w (%s)", where, err, advice)
}

// status is Kubernetes' metav1.Status, as far as it is read here.
type status struct {
	Kind    string `json:"kind"`
	Status  string `json:"status"`
	Code    int    `json:"code"`
	Reason  string `json:"reason"`
	Message string `json:"message"`
	Details *struct {
		Causes []struct {
			Field   string `json:"field"`
			Message string `json:"message"`
		} `json:"causes"`
	} `json:"details"`
	// Faults and Objects are those of a bocage.ApplyResult, which is no Status.
	Faults  bocage.Faults          `json:"faults"`
	Objects []bocage.AppliedObject `json:"objects"`
}

func (s status) err() *Error {
	e := &Error{Code: s.Code, Reason: s.Reason, Message: s.Message}
	if s.Details != nil {
		for _, cause := range s.Details.Causes {
			e.Faults = append(e.Faults, bocage.Fault{Field: cause.Field, Message: cause.Message})
		}
	}
	return e
}

func readError(answer *http.Response) error {
	data, err := io.ReadAll(io.LimitReader(answer.Body, maxAnswer))
	if err != nil {
		return fmt.Errorf("read the controller's answer: %w", err)
	}
	var s status
	if json.Unmarshal(data, &s) == nil && len(s.Faults) > 0 {
		return &Error{Code: answer.StatusCode, Reason: ReasonInvalid, Message: "not everything was applied", Faults: s.Faults, applied: s.Objects}
	}
	if s.Kind != "Status" {
		text := strings.TrimSpace(string(data[:min(len(data), 500)]))
		return &Error{Code: answer.StatusCode, Message: fmt.Sprintf("the controller answered %s: %s", answer.Status, text)}
	}
	return s.err()
}

// do sends a request and reads its answer's JSON into a value; nil drops it.
func (c *Client) do(ctx context.Context, r request, into any) error {
	body, err := c.open(ctx, r)
	if err != nil {
		return err
	}
	defer body.Close()
	data, err := io.ReadAll(io.LimitReader(body, maxAnswer))
	if err != nil {
		return fmt.Errorf("read the controller's answer: %w", err)
	}
	if into == nil {
		return nil
	}
	if err := json.Unmarshal(data, into); err != nil {
		return fmt.Errorf("read the controller's answer: %w", err)
	}
	return nil
}

// tellHeld passes on the warnings that policy is held.
func (c *Client) tellHeld(header http.Header) {
	if c.config.Held == nil {
		return
	}
	for _, warning := range header.Values("Warning") {
		if quoted, is := strings.CutPrefix(warning, "299 "+bocage.WarningPolicy+" "); is {
			if text, err := strconv.Unquote(quoted); err == nil {
				c.config.Held(text)
			}
		}
	}
}

func collectionPath(kind bocage.Kind, namespace string) string {
	path := "/apis/" + kind.APIVersion
	if kind.Group() == "" {
		path = "/api/" + kind.Version()
	}
	if kind.Namespaced && namespace != "" {
		path += "/namespaces/" + url.PathEscape(namespace)
	}
	return path + "/" + kind.Plural
}

func objectPath(kind bocage.Kind, namespace, name string) (string, error) {
	switch {
	case name == "":
		return "", fmt.Errorf("a %s needs a name", kind.Name)
	case kind.Namespaced && namespace == "":
		return "", fmt.Errorf("%s %s needs a namespace", kind.Name, name)
	}
	return collectionPath(kind, namespace) + "/" + url.PathEscape(name), nil
}

// Get reads one object.
func (c *Client) Get(ctx context.Context, kind bocage.Kind, namespace, name string) (bocage.Resource, error) {
	path, err := objectPath(kind, namespace, name)
	if err != nil {
		return nil, err
	}
	object := kind.New()
	return object, c.do(ctx, request{method: http.MethodGet, path: path}, object)
}

// ListOptions narrow a list. The zero value is everything.
type ListOptions struct {
	Namespace     string // empty: all of them
	LabelSelector string // as Kubernetes writes it
	FieldSelector string // metadata.name or metadata.namespace
}

func (o ListOptions) query() url.Values {
	q := url.Values{}
	if o.LabelSelector != "" {
		q.Set("labelSelector", o.LabelSelector)
	}
	if o.FieldSelector != "" {
		q.Set("fieldSelector", o.FieldSelector)
	}
	return q
}

// pageSize is how many objects one request of a list asks for.
const pageSize = 500

// List reads all objects of a kind, in pages of one revision, which it returns.
func (c *Client) List(ctx context.Context, kind bocage.Kind, options ListOptions) ([]bocage.Resource, string, error) {
	query := options.query()
	query.Set("limit", strconv.Itoa(pageSize))
	var objects []bocage.Resource
	for {
		var page struct {
			Metadata struct {
				ResourceVersion string `json:"resourceVersion"`
				Continue        string `json:"continue"`
			} `json:"metadata"`
			Items []json.RawMessage `json:"items"`
		}
		err := c.do(ctx, request{method: http.MethodGet, path: collectionPath(kind, options.Namespace), query: query}, &page)
		if err != nil {
			return nil, "", err
		}
		for _, data := range page.Items {
			object := kind.New()
			if err := json.Unmarshal(data, object); err != nil {
				return nil, "", fmt.Errorf("read a %s: %w", kind.Name, err)
			}
			objects = append(objects, object)
		}
		if page.Metadata.Continue == "" {
			return objects, page.Metadata.ResourceVersion, nil
		}
		query.Set("continue", page.Metadata.Continue)
	}
}

// Table is a list as people read it.
type Table struct {
	Columns []TableColumn
	Rows    []TableRow
	// ResourceVersion is the list's, to watch from.
	ResourceVersion string
}

// TableColumn is one column.
type TableColumn struct {
	Name string
	Wide bool
}

// TableRow is one object.
type TableRow struct {
	Cells           []string
	Namespace, Name string
}

type wireTable struct {
	Metadata struct {
		ResourceVersion string `json:"resourceVersion"`
	} `json:"metadata"`
	ColumnDefinitions []struct {
		Name     string `json:"name"`
		Priority int    `json:"priority"`
	} `json:"columnDefinitions"`
	Rows []struct {
		Cells  []any `json:"cells"`
		Object struct {
			Metadata bocage.ObjectMeta `json:"metadata"`
		} `json:"object"`
	} `json:"rows"`
}

func (w wireTable) table() Table {
	t := Table{ResourceVersion: w.Metadata.ResourceVersion}
	for _, column := range w.ColumnDefinitions {
		t.Columns = append(t.Columns, TableColumn{strings.ToUpper(column.Name), column.Priority > 0})
	}
	for _, row := range w.Rows {
		r := TableRow{Namespace: row.Object.Metadata.Namespace, Name: row.Object.Metadata.Name}
		for _, cell := range row.Cells {
			r.Cells = append(r.Cells, fmt.Sprint(cell))
		}
		t.Rows = append(t.Rows, r)
	}
	return t
}

const acceptTable = "application/json;as=Table;v=v1;g=meta.k8s.io"

// Table reads a list as people read it: the columns of the kind between name and
// age. A name narrows it to one object, which must be there.
func (c *Client) Table(ctx context.Context, kind bocage.Kind, name string, options ListOptions) (Table, error) {
	path := collectionPath(kind, options.Namespace)
	if name != "" {
		var err error
		if path, err = objectPath(kind, options.Namespace, name); err != nil {
			return Table{}, err
		}
	}
	var wire wireTable
	err := c.do(ctx, request{method: http.MethodGet, path: path, query: options.query(), accept: acceptTable}, &wire)
	return wire.table(), err
}

// WriteOptions say how to write.
type WriteOptions struct {
	// DryRun does everything but store the outcome.
	DryRun bool
	// Manager owns the fields that are written; empty is "bocage".
	Manager string
	// Force takes over fields that others own, in an apply.
	Force bool
}

func (o WriteOptions) query() url.Values {
	q := url.Values{"fieldManager": {o.Manager}}
	if o.Manager == "" {
		q.Set("fieldManager", "bocage")
	}
	if o.DryRun {
		q.Set("dryRun", "All")
	}
	if o.Force {
		q.Set("force", "true")
	}
	return q
}

// Create makes a new object and returns it as it is stored.
func (c *Client) Create(ctx context.Context, kind bocage.Kind, object bocage.Resource, options WriteOptions) (bocage.Resource, error) {
	return c.send(ctx, kind, object, request{
		method: http.MethodPost, path: collectionPath(kind, object.Meta().Namespace), query: options.query(),
	})
}

// Update replaces an object; its resourceVersion says which revision.
func (c *Client) Update(ctx context.Context, kind bocage.Kind, object bocage.Resource, options WriteOptions) (bocage.Resource, error) {
	path, err := objectPath(kind, object.Meta().Namespace, object.Meta().Name)
	if err != nil {
		return nil, err
	}
	return c.send(ctx, kind, object, request{method: http.MethodPut, path: path, query: options.query()})
}

// ApplyObject merges one object into what is there by the owners of its fields,
// or makes it. All its fields count as declared; [Client.Apply] keeps to those
// that a file has.
func (c *Client) ApplyObject(ctx context.Context, kind bocage.Kind, object bocage.Resource, options WriteOptions) (bocage.Resource, error) {
	path, err := objectPath(kind, object.Meta().Namespace, object.Meta().Name)
	if err != nil {
		return nil, err
	}
	// Who owns what is the server's to say.
	meta := object.Meta()
	owners := meta.ManagedFields
	meta.ManagedFields = nil
	defer func() { meta.ManagedFields = owners }()
	return c.send(ctx, kind, object, request{
		method: http.MethodPatch, path: path, query: options.query(), contentType: "application/apply-patch+yaml",
	})
}

// send writes an object and reads what the server made of it.
func (c *Client) send(ctx context.Context, kind bocage.Kind, object bocage.Resource, r request) (bocage.Resource, error) {
	*object.Type() = bocage.TypeMeta{APIVersion: kind.APIVersion, Kind: kind.Name}
	var err error
	if r.body, err = json.Marshal(object); err != nil {
		return nil, fmt.Errorf("write %s %s: %w", kind.Name, object.Meta().Name, err)
	}
	if r.contentType == "" {
		r.contentType = "application/json"
	}
	stored := kind.New()
	return stored, withSource(c.do(ctx, r, stored), object)
}

// withSource adds to a refused object's faults where it was declared.
func withSource(err error, object bocage.Resource) error {
	var e *Error
	source := object.Meta().Annotations[bocage.SourceAnnotation]
	if source == "" || !errors.As(err, &e) {
		return err
	}
	e.Faults = slices.Clone(e.Faults)
	for i := range e.Faults {
		if e.Faults[i].Source == "" {
			e.Faults[i].Source = source
		}
	}
	return err
}

// Patch changes the fields that a merge patch (RFC 7396) names. subresource is
// empty or "status".
func (c *Client) Patch(ctx context.Context, kind bocage.Kind, namespace, name, subresource string, patch any, options WriteOptions) (bocage.Resource, error) {
	path, err := objectPath(kind, namespace, name)
	if err != nil {
		return nil, err
	}
	if subresource != "" {
		path += "/" + subresource
	}
	body, err := json.Marshal(patch)
	if err != nil {
		return nil, fmt.Errorf("write the patch of %s %s: %w", kind.Name, name, err)
	}
	stored := kind.New()
	return stored, c.do(ctx, request{
		method: http.MethodPatch, path: path, query: options.query(), contentType: "application/merge-patch+json", body: body,
	}, stored)
}

// Delete removes an object. What finalizers hold is only marked for removal and
// stays until they are gone, as a guardrail stays in force until a second person
// agrees that it goes: held is the object then, and nil once it is gone.
func (c *Client) Delete(ctx context.Context, kind bocage.Kind, namespace, name string, options WriteOptions) (held bocage.Resource, err error) {
	path, err := objectPath(kind, namespace, name)
	if err != nil {
		return nil, err
	}
	query := url.Values{}
	if options.DryRun {
		query.Set("dryRun", "All")
	}
	var answer json.RawMessage
	if err := c.do(ctx, request{method: http.MethodDelete, path: path, query: query}, &answer); err != nil {
		return nil, err
	}
	var what bocage.TypeMeta
	if err := json.Unmarshal(answer, &what); err != nil {
		return nil, fmt.Errorf("read the controller's answer: %w", err)
	}
	if what.Kind == "Status" {
		return nil, nil
	}
	held = kind.New()
	if err := json.Unmarshal(answer, held); err != nil {
		return nil, fmt.Errorf("read what is left of %s %s: %w", kind.Name, name, err)
	}
	return held, nil
}
