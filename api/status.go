package api

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"bocage.dev/bocage"
	"bocage.dev/bocage/store"
)

// problem is an answer that is no success, in the form of Kubernetes' Status.
type problem struct{ metav1.Status }

func (p *problem) Error() string { return p.Message }

func newProblem(code int32, reason metav1.StatusReason, format string, args ...any) *problem {
	return &problem{metav1.Status{
		TypeMeta: metav1.TypeMeta{Kind: "Status", APIVersion: "v1"},
		Status:   metav1.StatusFailure, Code: code, Reason: reason, Message: fmt.Sprintf(format, args...),
	}}
}

// about names the object that a problem concerns.
func (p *problem) about(kind bocage.Kind, name string) *problem {
	if p.Details == nil {
		p.Details = &metav1.StatusDetails{}
	}
	p.Details.Group, p.Details.Kind, p.Details.Name = kind.Group(), kind.Plural, name
	return p
}

// retryAfter tells the client when to come back.
func (p *problem) retryAfter(seconds int32) *problem {
	if p.Details == nil {
		p.Details = &metav1.StatusDetails{}
	}
	p.Details.RetryAfterSeconds = seconds
	return p
}

func badRequest(format string, args ...any) *problem {
	return newProblem(http.StatusBadRequest, metav1.StatusReasonBadRequest, format, args...)
}

// wrongOption refuses what the options of a request say, as Kubernetes does: in the form
// of an object of theirs that is invalid.
func wrongOption(options, field, format string, args ...any) *problem {
	message := fmt.Sprintf(format, args...)
	p := newProblem(http.StatusUnprocessableEntity, metav1.StatusReasonInvalid, "%s.%s \"\" is invalid: %s: %s", options, metav1.GroupName, field, message)
	p.Details = &metav1.StatusDetails{Group: metav1.GroupName, Kind: options, Causes: []metav1.StatusCause{
		{Type: metav1.CauseTypeFieldValueInvalid, Field: field, Message: message}}}
	return p
}

// Names of the options of requests.
const (
	listOptions   = "ListOptions"
	deleteOptions = "DeleteOptions"
	patchOptions  = "PatchOptions"
)

// optionsOf names the options of a write.
func optionsOf(verb string) string {
	switch verb {
	case verbCreate:
		return "CreateOptions"
	case verbUpdate:
		return "UpdateOptions"
	case verbDelete, verbDeleteCollection:
		return deleteOptions
	}
	return patchOptions
}

func notFound(kind bocage.Kind, name string) *problem {
	return newProblem(http.StatusNotFound, metav1.StatusReasonNotFound,
		"%s %q not found", qualified(kind), name).about(kind, name)
}

func conflict(kind bocage.Kind, name, why string) *problem {
	return newProblem(http.StatusConflict, metav1.StatusReasonConflict,
		"Operation cannot be fulfilled on %s %q: %s", qualified(kind), name, why).about(kind, name)
}

func expired() *problem {
	return newProblem(http.StatusGone, metav1.StatusReasonExpired,
		"the resourceVersion is too old: list again")
}

// invalid carries every fault of an object as a cause of its own.
func invalid(kind bocage.Kind, name string, faults bocage.Faults) *problem {
	p := newProblem(http.StatusUnprocessableEntity, metav1.StatusReasonInvalid,
		"%s %q is invalid: %s", withGroup(kind.Name, kind), name, summary(faults)).about(kind, name)
	p.Details.Kind = kind.Name
	p.Details.Causes = causes(metav1.CauseTypeFieldValueInvalid, faults)
	return p
}

// malformed carries the faults of a body that is no object of its kind.
func malformed(kind bocage.Kind, name string, faults bocage.Faults) *problem {
	p := badRequest("%s %q cannot be read: %s", kind.Name, name, summary(faults)).about(kind, name)
	p.Details.Causes = causes(metav1.CauseTypeFieldValueNotSupported, faults)
	return p
}

func causes(reason metav1.CauseType, faults bocage.Faults) []metav1.StatusCause {
	out := make([]metav1.StatusCause, len(faults))
	for i, f := range faults {
		out[i] = metav1.StatusCause{Type: reason, Field: f.Field, Message: f.Message}
	}
	return out
}

func summary(faults bocage.Faults) string {
	lines := make([]string, 0, len(faults))
	for _, f := range faults {
		lines = append(lines, bocage.Fault{Field: f.Field, Message: f.Message}.String())
	}
	if len(lines) == 1 {
		return lines[0]
	}
	return "[" + strings.Join(lines, ", ") + "]"
}

// asProblem turns any error into an answer.
func asProblem(err error) *problem {
	var p *problem
	var tooLarge *http.MaxBytesError
	switch {
	case errors.As(err, &p):
		return p
	case errors.As(err, &tooLarge):
		return newProblem(http.StatusRequestEntityTooLarge, metav1.StatusReasonRequestEntityTooLarge,
			"the body is larger than %d MiB: split it", tooLarge.Limit>>20)
	case errors.Is(err, store.ErrTooLarge):
		return newProblem(http.StatusRequestEntityTooLarge, metav1.StatusReasonRequestEntityTooLarge,
			"the object is larger than the %d MiB that one may have: %v", store.MaxValue>>20, err)
	case errors.Is(err, store.ErrCompacted):
		return expired()
	case errors.Is(err, store.ErrFull):
		return newProblem(http.StatusInsufficientStorage, metav1.StatusReasonInternalError,
			"the store is full and takes no more writes: %s", cure(err))
	case errors.Is(err, store.ErrUnavailable):
		// Clients repeat by themselves what says when to: here somebody has to look first.
		return newProblem(http.StatusServiceUnavailable, metav1.StatusReasonServiceUnavailable,
			"%v: is a majority of its etcd up, and within reach? A change that was asked for may have been made, or may still be: look before you ask again", store.ErrUnavailable)
	case errors.Is(err, store.ErrConflict):
		return newProblem(http.StatusConflict, metav1.StatusReasonConflict, "%v: try again", err)
	case errors.Is(err, context.DeadlineExceeded):
		return newProblem(http.StatusGatewayTimeout, metav1.StatusReasonTimeout,
			"the store did not answer in time: try again").retryAfter(1)
	case errors.Is(err, context.Canceled):
		return newProblem(http.StatusServiceUnavailable, metav1.StatusReasonServiceUnavailable,
			"the request was cancelled")
	default:
		return newProblem(http.StatusInternalServerError, metav1.StatusReasonInternalError, "%v", err)
	}
}

// cure is what a full store says to do.
func cure(err error) string {
	if _, said, ok := strings.Cut(err.Error(), store.ErrFull.Error()+": "); ok {
		return said
	}
	return "delete objects or give it more room"
}

// writeProblem answers with a Status.
func writeProblem(w http.ResponseWriter, err error) {
	p := asProblem(err)
	if d := p.Details; d != nil && d.RetryAfterSeconds > 0 {
		w.Header().Set("Retry-After", fmt.Sprint(d.RetryAfterSeconds))
	}
	writeJSON(w, int(p.Code), p.Status)
}

// writeJSON answers with a value that JSON can hold. An error of the connection
// is the client's: there is nobody left to tell.
func writeJSON(w http.ResponseWriter, code int, value any) {
	data, err := json.Marshal(value)
	if err != nil {
		code = http.StatusInternalServerError
		data = []byte(`{"kind":"Status","apiVersion":"v1","status":"Failure","code":500,"message":"the answer cannot be written as JSON"}`)
	}
	writeBytes(w, code, "application/json", append(data, '\n'))
}

func writeBytes(w http.ResponseWriter, code int, contentType string, data []byte) {
	w.Header().Set("Content-Type", contentType)
	w.WriteHeader(code)
	_, _ = w.Write(data)
}
