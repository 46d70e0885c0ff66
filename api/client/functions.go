package client

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"bocage.dev/bocage"
	"bocage.dev/bocage/manifest"
)

// Apply declares documents together. All of them are valid, or nothing is stored
// and the error holds every fault of every document, with its file and line. What
// the store takes in one write (about a thousand objects) is stored at once or
// not at all; more than that goes in parts, and if one of them cannot be written,
// the result beside the error says of each object whether it was.
func (c *Client) Apply(ctx context.Context, documents []manifest.Document, options WriteOptions) (bocage.ApplyResult, error) {
	var result bocage.ApplyResult
	err := c.do(ctx, request{
		method: http.MethodPost, path: functionsPath + "/apply", query: options.query(),
		contentType: "application/json", body: linesOf(documents), many: true,
	}, &result)
	var e *Error
	if errors.As(err, &e) {
		e.Faults = placed(e.Faults, documents)
		result.Objects = e.applied
	}
	return result, err
}

// Plan says what documents would change if they were applied. A document whose
// object has a deletionTimestamp stands for its deletion; see [Client.PlanChanges].
func (c *Client) Plan(ctx context.Context, documents []manifest.Document) (bocage.PlanResult, error) {
	var result bocage.PlanResult
	err := c.do(ctx, request{
		method: http.MethodPost, path: functionsPath + "/plan", contentType: "application/json", body: linesOf(documents), many: true,
	}, &result)
	result.Faults = placed(result.Faults, documents)
	var e *Error
	if errors.As(err, &e) {
		e.Faults = placed(e.Faults, documents)
	}
	return result, err
}

// PlanChanges says what would change if some documents were applied and others
// were deleted.
func (c *Client) PlanChanges(ctx context.Context, applied, deleted []manifest.Document) (bocage.PlanResult, error) {
	documents := slices.Clone(applied)
	for _, d := range deleted {
		var object map[string]any
		if err := json.Unmarshal(d.JSON, &object); err != nil {
			return bocage.PlanResult{}, fmt.Errorf("read back %s: %w", d.Source, err)
		}
		metadata, ok := object["metadata"].(map[string]any)
		if !ok {
			return bocage.PlanResult{}, fmt.Errorf("%s has no metadata", d.Source)
		}
		metadata["deletionTimestamp"] = time.Now().UTC().Format(time.RFC3339)
		var err error
		if d.JSON, err = json.Marshal(object); err != nil {
			return bocage.PlanResult{}, fmt.Errorf("write %s: %w", d.Source, err)
		}
		documents = append(documents, d)
	}
	return c.Plan(ctx, documents)
}

// Test runs the PolicyTests among the documents on what would be in force if the
// others were applied; without any, those that are declared already.
func (c *Client) Test(ctx context.Context, documents []manifest.Document) ([]bocage.TestResult, error) {
	var results []bocage.TestResult
	err := c.do(ctx, request{
		method: http.MethodPost, path: functionsPath + "/test", contentType: "application/json", body: linesOf(documents), many: true,
	}, &results)
	var e *Error
	if errors.As(err, &e) {
		e.Faults = placed(e.Faults, documents)
	}
	return results, err
}

// Blast asks what can be reached from somewhere.
func (c *Client) Blast(ctx context.Context, q bocage.BlastQuery) (bocage.BlastResult, error) {
	query := url.Values{"from": {q.From}}
	if q.Hops > 0 {
		query.Set("hops", strconv.Itoa(q.Hops))
	}
	if q.Uninspected {
		query.Set("uninspected", "true")
	}
	if q.Lasting {
		query.Set("lasting", "true")
	}
	if q.LeastWeight > 0 {
		query.Set("leastWeight", strconv.Itoa(q.LeastWeight))
	}
	if q.Generation > 0 {
		query.Set("generation", strconv.FormatUint(q.Generation, 10))
	}
	var result bocage.BlastResult
	err := c.do(ctx, request{method: http.MethodGet, path: functionsPath + "/blast", query: query}, &result)
	return result, err
}

// Matrix asks who reaches whom in some namespaces; none is all of them.
func (c *Client) Matrix(ctx context.Context, namespaces []string) (bocage.ReachMatrix, error) {
	var result bocage.ReachMatrix
	err := c.do(ctx, request{
		method: http.MethodGet, path: functionsPath + "/matrix", query: url.Values{"namespace": namespaces},
	}, &result)
	return result, err
}

// Rollout confirms, promotes or takes back the newest generation.
func (c *Client) Rollout(ctx context.Context, r bocage.RolloutRequest) (bocage.RolloutStatus, error) {
	body, err := json.Marshal(r)
	if err != nil {
		return bocage.RolloutStatus{}, err
	}
	var status bocage.RolloutStatus
	err = c.do(ctx, request{
		method: http.MethodPost, path: functionsPath + "/rollout", contentType: "application/json", body: body,
	}, &status)
	return status, err
}

// linesOf writes one document a line, so that the server's "line N" names the
// document.
func linesOf(documents []manifest.Document) []byte {
	var body bytes.Buffer
	for _, d := range documents {
		body.Write(d.JSON)
		body.WriteByte('\n')
	}
	return body.Bytes()
}

// placed brings faults home from the lines that were sent to the files that the
// documents come from.
func placed(faults bocage.Faults, documents []manifest.Document) bocage.Faults {
	for i, fault := range faults {
		number, ok := strings.CutPrefix(fault.Source, "line ")
		n, err := strconv.Atoi(number)
		if !ok || err != nil || n < 1 || n > len(documents) {
			continue
		}
		fault.Source = ""
		faults[i] = documents[n-1].Place(bocage.Faults{fault})[0]
	}
	return faults
}

// Explain asks why a flow gets its verdict.
func (c *Client) Explain(ctx context.Context, q bocage.ExplainQuery) (bocage.Explanation, error) {
	query := url.Values{"from": {q.From}, "to": {q.To}, "protocol": {q.Protocol.String()}}
	if q.Name != "" {
		query.Set("name", q.Name)
	}
	if q.Port != 0 {
		query.Set("port", fmt.Sprint(q.Port))
	}
	if !q.At.IsZero() {
		query.Set("at", q.At.UTC().Format(time.RFC3339))
	}
	if q.Generation > 0 {
		query.Set("generation", strconv.FormatUint(q.Generation, 10))
	}
	if q.Decision != 0 {
		query.Set("decision", strconv.FormatUint(uint64(q.Decision), 10))
	}
	var explanation bocage.Explanation
	err := c.do(ctx, request{method: http.MethodGet, path: functionsPath + "/explain", query: query}, &explanation)
	return explanation, err
}

// Hunt asks the flow history in SQL. limit 0 is the server's default.
func (c *Client) Hunt(ctx context.Context, sql string, limit int) (bocage.HuntResult, error) {
	query := url.Values{}
	if limit > 0 {
		query.Set("limit", strconv.Itoa(limit))
	}
	var result bocage.HuntResult
	err := c.do(ctx, request{
		method: http.MethodPost, path: functionsPath + "/hunt", query: query, contentType: "application/sql", body: []byte(sql),
	}, &result)
	return result, err
}

// Suggest asks for policy drawn from what was seen; no namespaces is all of them.
func (c *Client) Suggest(ctx context.Context, since time.Duration, namespaces []string) (bocage.SuggestResult, error) {
	query := url.Values{"since": {since.String()}}
	for _, namespace := range namespaces {
		query.Add("namespace", namespace)
	}
	var result bocage.SuggestResult
	err := c.do(ctx, request{method: http.MethodGet, path: functionsPath + "/suggest", query: query}, &result)
	return result, err
}

// JoinToken makes a token with which the agent of a host joins, once. ttl 0 is
// an hour.
func (c *Client) JoinToken(ctx context.Context, host string, ttl time.Duration) (token string, expires time.Time, err error) {
	body, err := json.Marshal(map[string]any{"path": "/agent/" + host, "ttlSeconds": int64(ttl / time.Second)})
	if err != nil {
		return "", time.Time{}, err
	}
	var answer struct {
		Token   string    `json:"token"`
		Expires time.Time `json:"expires"`
	}
	err = c.do(ctx, request{
		method: http.MethodPost, path: functionsPath + "/joinTokens", contentType: "application/json", body: body,
	}, &answer)
	return answer.Token, answer.Expires, err
}

// Ready returns nil once the server says that everything works, or what does not.
func (c *Client) Ready(ctx context.Context) error {
	body, err := c.open(ctx, request{method: http.MethodGet, path: "/readyz"})
	if err != nil {
		return err
	}
	return body.Close()
}
