package api

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"net/http"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"bocage.dev/bocage"
)

// openAPIDocuments writes an OpenAPI v3 document for each group version of ours.
// kubectl reads from it what fields there are and which parameters are understood.
func openAPIDocuments(s *schemas) (map[string][]byte, error) {
	paths := map[string]any{}
	for _, kind := range bocage.Kinds() {
		describePaths(paths, kind)
	}
	document, err := json.Marshal(map[string]any{
		"openapi": "3.0.0",
		"info":    map[string]any{"title": "Bocage", "version": Version},
		"paths":   paths,
		"components": map[string]any{
			"schemas": s.definitions,
		},
	})
	if err != nil {
		return nil, err
	}
	namespace := map[string]any{
		"type": "object", "description": "A namespace exists as soon as something is declared in it.",
		"properties": map[string]any{
			"apiVersion": map[string]any{"type": "string"}, "kind": map[string]any{"type": "string"},
			"metadata": map[string]any{"type": "object"},
		},
		"x-kubernetes-group-version-kind": []any{map[string]any{"group": "", "version": "v1", "kind": "Namespace"}},
	}
	core, err := json.Marshal(map[string]any{
		"openapi": "3.0.0",
		"info":    map[string]any{"title": "Bocage", "version": Version},
		"paths": map[string]any{"/api/v1/namespaces": map[string]any{
			"get": operation("Namespace", "", "list", nil),
		}},
		"components": map[string]any{"schemas": map[string]any{"io.k8s.api.core.v1.Namespace": namespace}},
	})
	return map[string][]byte{"apis/" + bocage.APIVersion: document, "api/v1": core}, err
}

// describePaths adds the paths of one kind.
func describePaths(paths map[string]any, kind bocage.Kind) {
	collection := resourcesPath + "/" + kind.Plural
	var within []any
	if kind.Namespaced {
		paths[collection] = map[string]any{"get": operation(kind.Name, Group, "list", listParameters())}
		collection = resourcesPath + "/namespaces/{namespace}/" + kind.Plural
		within = append(within, parameter("namespace", "path", "The namespace."))
	}
	many, one, status := map[string]any{}, map[string]any{}, map[string]any{}
	for _, verb := range verbsOf(kind) {
		switch verb {
		case verbList:
			many["get"] = operation(kind.Name, Group, "list", listParameters())
		case verbCreate:
			many["post"] = operation(kind.Name, Group, "post", writeParameters())
		case verbDeleteCollection:
			many["delete"] = operation(kind.Name, Group, "deletecollection", listParameters())
		case verbGet:
			one["get"] = operation(kind.Name, Group, "get", nil)
		case verbUpdate:
			one["put"] = operation(kind.Name, Group, "put", writeParameters())
		case verbPatch:
			one["patch"] = operation(kind.Name, Group, "patch", append(writeParameters(), query("force", "boolean", "Take over fields that others own, in a server-side apply.")))
		case verbDelete:
			one["delete"] = operation(kind.Name, Group, "delete", []any{dryRunParameter()})
		}
	}
	for _, verb := range statusVerbsOf(kind) {
		switch verb {
		case verbGet:
			status["get"] = operation(kind.Name, Group, "get", nil)
		case verbUpdate:
			status["put"] = operation(kind.Name, Group, "put", writeParameters())
		case verbPatch:
			status["patch"] = operation(kind.Name, Group, "patch", writeParameters())
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
	paths[collection+"/{name}/status"] = status
}

func operation(kind, group, action string, parameters []any) map[string]any {
	reference := map[string]any{"type": "object"}
	if group == Group {
		reference = map[string]any{"$ref": refPrefix + schemaPrefix + kind}
	}
	content := map[string]any{"application/json": map[string]any{"schema": reference}}
	o := map[string]any{
		"x-kubernetes-action":             action,
		"x-kubernetes-group-version-kind": map[string]any{"group": group, "version": Version, "kind": kind},
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
		for _, form := range []string{"application/json-patch+json", "application/merge-patch+json", "application/apply-patch+yaml"} {
			body[form] = map[string]any{"schema": map[string]any{"type": "object"}}
		}
		o["requestBody"] = map[string]any{"required": true, "content": body}
	}
	return o
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

func listParameters() []any {
	return []any{
		query("labelSelector", "string", "Which labels the objects have."),
		query("fieldSelector", "string", "metadata.name or metadata.namespace."),
		query("limit", "integer", "The largest number of objects in one answer."),
		query("continue", "string", "The token of the answer before."),
		query("resourceVersion", "string", "The revision to read at, or to watch from."),
		query("watch", "boolean", "Watch for changes."),
		query("timeoutSeconds", "integer", "How long to watch."),
		query("allowWatchBookmarks", "boolean", "Send bookmarks while nothing changes."),
	}
}

// serveOpenAPI serves the index and the documents.
func (s *Server) serveOpenAPI(c *call, path string) error {
	name := strings.TrimPrefix(strings.TrimPrefix(path, "/openapi/v3"), "/")
	if name == "" {
		index := map[string]any{}
		for groupVersion, document := range s.openAPI {
			sum := sha256.Sum256(document)
			index[groupVersion] = map[string]string{
				"serverRelativeURL": "/openapi/v3/" + groupVersion + "?hash=" + strings.ToUpper(hex.EncodeToString(sum[:])),
			}
		}
		writeJSON(c.w, http.StatusOK, map[string]any{"paths": index})
		return nil
	}
	document, ok := s.openAPI[name]
	if !ok {
		return newProblem(http.StatusNotFound, metav1.StatusReasonNotFound, "there is no OpenAPI document of %s", name)
	}
	writeBytes(c.w, http.StatusOK, "application/json", document)
	return nil
}
