package api

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"net/http"
	"reflect"
	"slices"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"bocage.dev/bocage"
)

// openAPIDocuments writes an OpenAPI v3 document for each group version. kubectl
// reads from it what fields there are and which parameters are understood.
func openAPIDocuments(s *schemas) (map[string][]byte, error) {
	documents := map[string][]byte{}
	for _, groupVersion := range groupVersions() {
		paths := map[string]any{}
		for _, kind := range kindsIn(groupVersion) {
			describePaths(paths, kind)
		}
		data, err := json.Marshal(map[string]any{
			"openapi":    "3.0.0",
			"info":       map[string]any{"title": "Bocage", "version": Version},
			"paths":      paths,
			"components": map[string]any{"schemas": s.reachable(groupVersion)},
		})
		if err != nil {
			return nil, err
		}
		documents[strings.TrimPrefix(versionPath(groupVersion), "/")] = data
	}
	return documents, nil
}

// describePaths adds the paths of one kind.
func describePaths(paths map[string]any, kind bocage.Kind) {
	base := versionPath(kind.APIVersion)
	collection := base + "/" + kind.Plural
	var within []any
	if kind.Namespaced {
		paths[collection] = map[string]any{"get": operation(kind, "list", listParameters())}
		collection = base + "/namespaces/{namespace}/" + kind.Plural
		within = append(within, parameter("namespace", "path", "The namespace."))
	}
	many, one, status := map[string]any{}, map[string]any{}, map[string]any{}
	for _, verb := range verbsOf(kind) {
		switch verb {
		case verbList:
			many["get"] = operation(kind, "list", listParameters())
		case verbCreate:
			many["post"] = operation(kind, "post", writeParameters())
		case verbDeleteCollection:
			many["delete"] = operation(kind, "deletecollection", listParameters())
		case verbGet:
			one["get"] = operation(kind, "get", nil)
		case verbUpdate:
			one["put"] = operation(kind, "put", writeParameters())
		case verbPatch:
			one["patch"] = operation(kind, "patch", append(writeParameters(), query("force", "boolean", "Take over fields that others own, in a server-side apply.")))
		case verbDelete:
			one["delete"] = operation(kind, "delete", deleteParameters())
		}
	}
	for _, verb := range statusVerbsOf(kind) {
		switch verb {
		case verbGet:
			status["get"] = operation(kind, "get", nil)
		case verbUpdate:
			status["put"] = operation(kind, "put", writeParameters())
		case verbPatch:
			status["patch"] = operation(kind, "patch", writeParameters())
		}
	}
	name := append([]any{parameter("name", "path", "The object's name.")}, within...)
	for _, item := range []map[string]any{one, status} {
		item["parameters"] = name
	}
	if within != nil {
		many["parameters"] = within
	}
	paths[collection] = many
	paths[collection+"/{name}"] = one
	if hasStatus(kind) {
		paths[collection+"/{name}/status"] = status
	}
	if approvable(kind) {
		paths[collection+"/{name}/approval"] = map[string]any{"post": approvalOperation(kind), "put": approvalOperation(kind), "parameters": name}
	}
}

// approvalOperation describes how a second person agrees: with the generation that
// they looked at, or with nothing.
func approvalOperation(kind bocage.Kind) map[string]any {
	o := operation(kind, "connect", writeParameters()[:1])
	o["description"] = "Agrees, as a second person, to the object as it stands, or to its deletion."
	o["requestBody"] = map[string]any{"required": false, "content": map[string]any{"application/json": map[string]any{"schema": map[string]any{
		"type": "object",
		"properties": map[string]any{"generation": map[string]any{
			"type": "integer", "format": "int64", "description": "The generation that is agreed to; another one is refused.",
		}},
	}}}}
	return o
}

func operation(kind bocage.Kind, action string, parameters []any) map[string]any {
	reference := map[string]any{"$ref": refPrefix + schemaName(reflect.TypeOf(kind.New()).Elem())}
	content := map[string]any{"application/json": map[string]any{"schema": reference}}
	o := map[string]any{
		"x-kubernetes-action":             action,
		"x-kubernetes-group-version-kind": map[string]any{"group": kind.Group(), "version": kind.Version(), "kind": kind.Name},
		"responses":                       map[string]any{"200": map[string]any{"description": "OK", "content": content}},
	}
	if parameters != nil {
		o["parameters"] = parameters
	}
	switch action {
	case "post", "put":
		o["requestBody"] = map[string]any{"required": true, "content": content}
	case "patch":
		body := map[string]any{}
		for _, form := range patchForms(kind) {
			body[form] = map[string]any{"schema": map[string]any{"type": "object"}}
		}
		o["requestBody"] = map[string]any{"required": true, "content": body}
	}
	return o
}

func patchForms(kind bocage.Kind) []string {
	forms := []string{"application/json-patch+json", "application/merge-patch+json", "application/apply-patch+yaml"}
	if strategic(kind) {
		forms = append(forms, "application/strategic-merge-patch+json")
	}
	return forms
}

func parameter(name, in, description string) map[string]any {
	return map[string]any{
		"name": name, "in": in, "required": in == "path", "description": description,
		"schema": map[string]any{"type": "string", "uniqueItems": true},
	}
}

func query(name, kind, description string) map[string]any {
	p := parameter(name, "query", description)
	p["schema"] = map[string]any{"type": kind, "uniqueItems": true}
	return p
}

func dryRunParameter() map[string]any {
	return query("dryRun", "string", "All: do everything but store the outcome.")
}

func writeParameters() []any {
	return []any{
		dryRunParameter(),
		query("fieldManager", "string", "Who owns the fields that are written."),
		query("fieldValidation", "string", "What to do with unknown fields and keys given twice: Strict (the default), Warn or Ignore."),
	}
}

func deleteParameters() []any {
	return []any{
		dryRunParameter(),
		query("propagationPolicy", "string", "What becomes of the objects that the object owns: Background (the default), Foreground or Orphan."),
	}
}

func listParameters() []any {
	return []any{
		query("labelSelector", "string", "Which labels the objects have."),
		query("fieldSelector", "string", "Which fields the objects have: metadata.name, metadata.namespace, and what else the kind can be selected by."),
		query("limit", "integer", "The largest number of objects in one answer."),
		query("continue", "string", "The token of the answer before."),
		query("resourceVersion", "string", "The revision to read at, or to watch from."),
		query("watch", "boolean", "Watch for changes."),
		query("timeoutSeconds", "integer", "How long to watch."),
		query("allowWatchBookmarks", "boolean", "Send bookmarks while nothing changes."),
		query("sendInitialEvents", "boolean", "Watch: show what is there first, then a bookmark that says so."),
		query("resourceVersionMatch", "string", "Exact or NotOlderThan: what resourceVersion means."),
	}
}

// serveOpenAPI serves the index and the documents.
func (s *Server) serveOpenAPI(c *call, path string) error {
	if path == "/openapi/v2" {
		return s.serveOpenAPI2(c)
	}
	name := strings.TrimPrefix(strings.TrimPrefix(path, "/openapi/v3"), "/")
	if name == "" {
		index := map[string]any{}
		for groupVersion, document := range s.openAPI {
			index[groupVersion] = map[string]string{"serverRelativeURL": "/openapi/v3/" + groupVersion + "?hash=" + hashOfDocument(document)}
		}
		writeJSON(c.w, http.StatusOK, map[string]any{"paths": index})
		return nil
	}
	document, ok := s.openAPI[name]
	if !ok {
		return newProblem(http.StatusNotFound, metav1.StatusReasonNotFound, "there is no OpenAPI document of %s", name)
	}
	if asked, now := c.query.Get("hash"), hashOfDocument(document); asked != "" && asked != now {
		// Who keeps the answer for good must keep it under its own name.
		http.Redirect(c.w, c.r, "/openapi/v3/"+name+"?hash="+now, http.StatusMovedPermanently)
		return nil
	}
	return c.writeDocument("application/json", document)
}

func hashOfDocument(document []byte) string {
	sum := sha256.Sum256(document)
	return strings.ToUpper(hex.EncodeToString(sum[:]))
}

// writeDocument writes what seldom changes, unless the client has it already.
func (c *call) writeDocument(contentType string, document []byte) error {
	tag := `"` + hashOfDocument(document) + `"`
	c.w.Header().Set("ETag", tag)
	if slices.Contains(strings.Split(c.r.Header.Get("If-None-Match"), ", "), tag) {
		c.w.WriteHeader(http.StatusNotModified)
		return nil
	}
	c.w.Header().Set("Content-Type", contentType)
	out := c.compressed(len(document))
	c.w.WriteHeader(http.StatusOK)
	_, _ = out.Write(document)
	_ = out.Close()
	return nil
}
