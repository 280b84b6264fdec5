package kind_test

import (
	"bytes"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"keelson.dev/services/apiserver/internal/resource"
)

// record sends the requests to the server and stores the responses.
func record(t *testing.T, k *resource.Kind, c *cases, answers map[string]answer) {
	call(t, "POST", "/api/v1/namespaces", map[string]any{"metadata": map[string]any{"name": "observed"}})
	base := "/apis/" + c.Group + "/" + c.Version
	if c.Group == "" {
		base = "/api/" + c.Version
	}
	if k.Namespaced {
		base += "/namespaces/observed"
	}
	base += "/" + c.Resource
	for _, q := range c.Cases {
		object := change(t, c.Bases[q.Base], q.Set)
		if k.Namespaced {
			put(object, "metadata.namespace", "observed")
		}
		if q.Table {
			answers[q.name()] = recordTable(t, k, base, len(answers), q, object)
			continue
		}
		if q.Update == nil {
			answers[q.name()] = put1(t, "POST", base, object, c)
			continue
		}
		put(object, "metadata.name", unique(len(answers)))
		var created map[string]any
		if err := json.Unmarshal(call(t, "POST", base, object), &created); err != nil {
			t.Fatal(err)
		}
		if created["kind"] == "Status" {
			t.Fatalf("%s: the base cannot be created: %v", q.name(), created["message"])
		}
		name := created["metadata"].(map[string]any)["name"].(string)
		path := base + "/" + name
		if q.Status != nil {
			if err := json.Unmarshal(call(t, "PUT", statusPath(k, q, path), change(t, created, q.Status)), &created); err != nil {
				t.Fatal(err)
			}
			if created["kind"] == "Status" {
				t.Fatalf("%s: the status cannot be set: %v", q.name(), created["message"])
			}
		}
		next := change(t, created, q.Update)
		if q.Subresource != "" {
			path += "/" + q.Subresource
		}
		answers[q.name()] = put1(t, "PUT", path, next, c)
		call(t, "DELETE", base+"/"+name+"?gracePeriodSeconds=0", nil)
	}
}

func statusPath(k *resource.Kind, q question, path string) string {
	if q.Through != "" {
		return path + "/" + q.Through
	}
	if _, ok := k.Subresources["status"]; ok {
		return path + "/status"
	}
	return path
}

// unique returns a name that no earlier run has used.
func unique(i int) string { return fmt.Sprintf("observed-%d-%d", time.Now().Unix(), i) }

// put1 writes with a dry run, and records the warnings.
func put1(t *testing.T, method, path string, object map[string]any, c *cases) answer {
	body, warnings := exchange(t, method, path+"?dryRun=All&fieldValidation=Ignore", object)
	out := parse(t, body, c.Volatile)
	for _, w := range warnings {
		w = strings.TrimSuffix(strings.TrimPrefix(w, `299 - "`), `"`)
		w = strings.ReplaceAll(w, `\"`, `"`)
		// The front adds the warning about a deprecated version.
		if out.Errors == nil && !strings.Contains(w, "is deprecated in v1.") {
			out.Warnings = append(out.Warnings, w)
		}
	}
	return out
}

func recordTable(t *testing.T, k *resource.Kind, base string, i int, q question, object map[string]any) answer {
	name := unique(i)
	put(object, "metadata.name", name)
	path := base + "/" + name
	write := func(method, at string, body any) map[string]any {
		var out map[string]any
		if err := json.Unmarshal(call(t, method, at, body), &out); err != nil {
			t.Fatal(err)
		}
		if out["kind"] == "Status" && method != "DELETE" {
			t.Fatalf("%s: %s %s: %v", q.name(), method, at, out["message"])
		}
		return out
	}
	created := write("POST", base, object)
	if len(q.Status) > 0 {
		write("PUT", statusPath(k, q, path), change(t, created, q.Status))
	}
	if q.Deleted {
		write("DELETE", path+"?gracePeriodSeconds=0", nil)
	}
	var out metav1.Table
	if err := json.Unmarshal(call(t, "TABLE", path, nil), &out); err != nil {
		t.Fatal(err)
	}
	call(t, "PATCH", path, map[string]any{"metadata": map[string]any{"finalizers": nil}})
	call(t, "DELETE", path+"?gracePeriodSeconds=0", nil)
	if len(out.Rows) != 1 {
		t.Fatalf("%s: %d rows", q.name(), len(out.Rows))
	}
	return table(t, out.ColumnDefinitions, out.Rows[0].Cells)
}

func call(t *testing.T, method, path string, body any) []byte {
	out, _ := exchange(t, method, path, body)
	return out
}

func exchange(t *testing.T, method, path string, body any) (answer []byte, warnings []string) {
	var data []byte
	if body != nil {
		var err error
		if data, err = json.Marshal(body); err != nil {
			t.Fatal(err)
		}
	}
	accept, contentType := "application/json", "application/json"
	switch method {
	case "TABLE":
		method, accept = "GET", "application/json;as=Table;v=v1;g=meta.k8s.io"
	case "PATCH":
		contentType = "application/merge-patch+json"
	}
	request, err := http.NewRequestWithContext(t.Context(), method, *observe+path, bytes.NewReader(data))
	if err != nil {
		t.Fatal(err)
	}
	request.Header.Set("Authorization", "Bearer "+*token)
	request.Header.Set("Content-Type", contentType)
	request.Header.Set("Accept", accept)
	client := http.Client{Transport: &http.Transport{
		TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, // a dedicated server on loopback
	}}
	defer client.CloseIdleConnections()
	response, err := client.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = response.Body.Close() }()
	out, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	return out, response.Header.Values("Warning")
}

func parse(t *testing.T, body []byte, volatile []string) answer {
	var object map[string]any
	if err := json.Unmarshal(body, &object); err != nil {
		t.Fatalf("%v: %s", err, body)
	}
	if object["kind"] != "Status" {
		delete(object, "kind")
		delete(object, "apiVersion")
		strip(object, volatile)
		return answer{Object: object}
	}
	var status metav1.Status
	if err := json.Unmarshal(body, &status); err != nil {
		t.Fatal(err)
	}
	var errs []string
	if status.Details != nil {
		for _, cause := range status.Details.Causes {
			if text := string(cause.Type) + " " + cause.Field + ": " + cause.Message; !slices.Contains(errs, text) {
				errs = append(errs, text)
			}
		}
	}
	if len(errs) == 0 {
		errs = []string{fmt.Sprintf("%d %s", status.Code, status.Message)}
	}
	slices.Sort(errs)
	return answer{Errors: errs}
}
