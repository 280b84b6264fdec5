package kind_test

import (
	"bytes"
	"crypto/tls"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"sigs.k8s.io/yaml"

	"keelson.dev/services/apiserver/internal/kind"
	"keelson.dev/services/apiserver/internal/kind/certificates"
	"keelson.dev/services/apiserver/internal/kind/core"
	"keelson.dev/services/apiserver/internal/request"
	"keelson.dev/services/apiserver/internal/resource"
)

// These tests hold the kinds to what a Kubernetes 1.37 API server answered when
// it was asked the same. A file testdata/KIND.yaml has objects and changes to
// them; testdata/KIND.answers.json has the answers, recorded from the outside by
//
//	go test ./internal/kind -run Observed -observe https://HOST:PORT -token TOKEN
//
// against a server of one's own. Where Keelson means to answer otherwise, the
// case says how, under `keelson`.
var (
	observe = flag.String("observe", "", "API server to record the answers of")
	token   = flag.String("token", "", "bearer token for -observe")
)

// cases is a file of questions about one kind.
type cases struct {
	Group, Version, Resource string
	// Volatile are fields that differ between any two answers.
	Volatile []string
	Bases    map[string]any
	Cases    []question
}

type question struct {
	Base string
	// Set changes fields of the base before it is created; null deletes.
	Set map[string]any
	// Update, if not nil, changes the created object and updates it, through a
	// subresource if one is named.
	Update      map[string]any
	Subresource string
	// Status is set in the created object before it is updated or shown.
	Status map[string]any
	// Table asks for the object's row of `kubectl get` instead, after it was
	// deleted if Deleted is set (it then needs a finalizer).
	Table   bool
	Deleted bool
	// Refused says that Keelson refuses what Kubernetes may take, because it does
	// not do it.
	Refused bool
	// Keelson, if not nil, are the errors where Keelson differs on purpose; an
	// empty list says that Keelson accepts.
	Keelson *[]string
	// KeelsonSet says what differs in the object that Keelson accepts.
	KeelsonSet map[string]any
}

// answer is either an object or what is wrong with it.
type answer struct {
	Object map[string]any `json:"object,omitempty"`
	Errors []string       `json:"errors,omitempty"`
	// Columns are name, type, format and priority of each.
	Columns []string `json:"columns,omitempty"`
	Cells   []any    `json:"cells,omitempty"`
}

// madeUpUID stands for any uid that a server makes up.
const madeUpUID = "00000000-0000-4000-8000-000000000000"

var madeUp = regexp.MustCompile(`[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}`)

func (q question) name() string {
	parts := []string{q.Base}
	text := func(v any) string {
		b, _ := json.Marshal(v)
		return string(b)
	}
	if len(q.Set) > 0 {
		parts = append(parts, text(q.Set))
	}
	if q.Update != nil {
		parts = append(parts, "update", q.Subresource, text(q.Update))
	}
	if q.Table {
		parts = append(parts, "table")
	}
	if q.Status != nil {
		parts = append(parts, "status", text(q.Status))
	}
	if q.Deleted {
		parts = append(parts, "deleted")
	}
	return strings.Join(parts, " ")
}

func TestObserved(t *testing.T) {
	files, err := filepath.Glob("testdata/*.yaml")
	if err != nil || len(files) == 0 {
		t.Fatalf("no files of cases (%v)", err)
	}
	table := resource.NewTable(kind.All()...)
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".yaml"), func(t *testing.T) {
			data, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			var c cases
			if err := yaml.UnmarshalStrict(data, &c); err != nil {
				t.Fatalf("%s: %v", file, err)
			}
			k := table.ByResource(schema.GroupVersionResource{Group: c.Group, Version: c.Version, Resource: c.Resource})
			if k == nil {
				t.Fatalf("%s: no such kind", file)
			}
			stored := strings.TrimSuffix(file, ".yaml") + ".answers.json"
			answers := map[string]answer{}
			if *observe != "" {
				record(t, k, &c, answers)
				text, err := json.MarshalIndent(answers, "", " ")
				if err != nil {
					t.Fatal(err)
				}
				text = madeUp.ReplaceAll(text, []byte(madeUpUID))
				if err := json.Unmarshal(text, &answers); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(stored, append(text, '\n'), 0o644); err != nil {
					t.Fatal(err)
				}
			} else if data, err := os.ReadFile(stored); err != nil {
				t.Fatal(err)
			} else if err := json.Unmarshal(data, &answers); err != nil {
				t.Fatal(err)
			}
			for _, q := range c.Cases {
				compare(t, k, &c, q, answers)
			}
		})
	}
}

func compare(t *testing.T, k *resource.Kind, c *cases, q question, answers map[string]answer) {
	t.Run(q.name(), func(t *testing.T) {
		want, ok := answers[q.name()]
		if !ok {
			t.Fatal("no answer is recorded; see the comment at the top")
		}
		got := ask(t, k, c, q)
		if q.Refused {
			if !slices.ContainsFunc(got.Errors, func(e string) bool { return strings.HasSuffix(e, "not supported by Keelson") }) {
				t.Errorf("Keelson should say that it does not support this, not %q", got.Errors)
			}
			return
		}
		if q.Keelson != nil {
			want = answer{Object: want.Object, Errors: *q.Keelson}
			if len(*q.Keelson) > 0 {
				want.Object = nil
			}
		}
		want.Errors, got.Errors = plain(want.Errors), plain(got.Errors)
		if !slices.Equal(want.Errors, got.Errors) {
			t.Errorf("errors\n  want %q\n  got  %q", want.Errors, got.Errors)
		}
		if q.Table {
			for i := range max(len(want.Columns), len(got.Columns)) {
				if i >= len(want.Columns) || i >= len(got.Columns) || want.Columns[i] != got.Columns[i] {
					t.Errorf("column %d of\n  want %q\n  got  %q", i, want.Columns, got.Columns)
					break
				}
			}
			for _, d := range differences("cells", want.Cells, got.Cells) {
				t.Error(d)
			}
			return
		}
		if k.Virtual != "" {
			return // what it answers is its action's
		}
		if len(want.Errors) > 0 || len(got.Errors) > 0 || want.Object == nil {
			return
		}
		object := clone(want.Object)
		for path, value := range q.KeelsonSet {
			put(object, path, value)
		}
		strip(object, c.Volatile)
		strip(got.Object, c.Volatile)
		for _, d := range differences("", object, got.Object) {
			t.Error(d)
		}
	})
}

// ask puts a question to the kind's rules, as the pipeline does.
func ask(t *testing.T, k *resource.Kind, c *cases, q question) answer {
	object := change(t, c.Bases[q.Base], q.Set)
	if k.Namespaced {
		put(object, "metadata.namespace", "observed")
	}
	obj := decode(t, k, object)
	r := k.Rules
	call1(r.Default, obj)
	if k.Virtual == "" {
		obj.SetUID(madeUpUID)
	}
	call1(r.PrepareCreate, obj)
	claim(obj)
	var errs field.ErrorList
	if k.Virtual == "" {
		errs = metaErrors(k, obj)
	}
	if r.Validate != nil {
		errs = append(errs, r.Validate(obj)...)
	}
	if len(errs) > 0 {
		return answer{Errors: texts(errs)}
	}
	call1(r.Default, obj)
	if q.Table {
		return row(t, k, q, obj)
	}
	if q.Update == nil {
		return answer{Object: tree(t, obj)}
	}
	obj = decode(t, k, change(t, tree(t, obj), q.Status))
	before := obj.DeepCopyObject().(resource.Object)
	next := decode(t, k, change(t, tree(t, obj), q.Update))
	if q.Subresource != "" {
		r = *k.Subresources[q.Subresource].View
	}
	call1(r.Default, next)
	if r.PrepareUpdate != nil {
		r.PrepareUpdate(next, obj)
	}
	claim(next)
	next.SetResourceVersion("1")
	errs = apivalidation.ValidateObjectMetaAccessorUpdate(next, obj, field.NewPath("metadata"))
	if r.ValidateUpdate != nil {
		errs = append(errs, r.ValidateUpdate(next, obj)...)
	}
	if len(errs) > 0 {
		return answer{Errors: texts(errs)}
	}
	if !reflect.DeepEqual(before, obj) {
		t.Error("the update changed the old object, which others read")
	}
	return answer{Object: tree(t, next)}
}

// row asks for an object's row.
func row(t *testing.T, k *resource.Kind, q question, obj resource.Object) answer {
	obj = decode(t, k, change(t, tree(t, obj), q.Status))
	obj.SetCreationTimestamp(metav1.Now())
	obj.SetName("observed")
	if q.Deleted {
		now := metav1.Now()
		obj.SetDeletionTimestamp(&now)
		call1(k.Terminate, obj)
	}
	columns, cells := k.Columns, []any(nil)
	if !k.NoNameColumn {
		columns = append([]metav1.TableColumnDefinition{
			{Name: "Name", Type: "string", Format: "name", Description: metav1.ObjectMeta{}.SwaggerDoc()["name"]},
		}, columns...)
		cells = append(cells, obj.GetName())
	}
	if k.Cells == nil {
		t.Fatal("the kind has no columns")
	}
	out := table(t, columns, append(cells, k.Cells(obj)...))
	return answer{Columns: out.Columns, Cells: tree(t, out)["cells"].([]any)}
}

func table(t *testing.T, columns []metav1.TableColumnDefinition, cells []any) answer {
	out := answer{Cells: slices.Clone(cells)}
	for i, c := range columns {
		out.Columns = append(out.Columns, fmt.Sprintf("%s|%s|%s|%d", c.Name, c.Type, c.Format, c.Priority))
		if c.Description == "" {
			t.Errorf("column %s has no description", c.Name)
		}
		if text, ok := out.Cells[i].(string); ok && seconds.MatchString(text) {
			out.Cells[i] = "0s"
		}
		if c.Format == "name" { // the recorder makes names up
			out.Cells[i] = observedName.ReplaceAllString(out.Cells[i].(string), "observed")
		}
	}
	return out
}

var (
	seconds      = regexp.MustCompile(`^\d+s$`)
	observedName = regexp.MustCompile(`^observed-[0-9-]+`)
)

// structured are values that Kubernetes prints by the names of its internal
// types.
var structured = regexp.MustCompile(`((?:Invalid|Unsupported|Duplicate) value: )[\[{].*[\]}](: |$)`)

// allocated are addresses that a server makes up.
var allocated = regexp.MustCompile(`10\.96\.\d+\.\d+`)

// plain leaves out of the messages what differs for no good: structured values
// and printed differences.
func plain(errs []string) []string {
	var out []string
	for _, e := range errs {
		e, _, _ = strings.Cut(e, "\n")
		e = allocated.ReplaceAllString(e, "10.96.x.y")
		out = append(out, structured.ReplaceAllString(e, "$1{…}$2"))
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// claim does what admission and allocators do.
func claim(o resource.Object) {
	if c, ok := o.(*certificatesv1.CertificateSigningRequest); ok {
		certificates.SetRequester(c, request.User{Name: "admin"})
	}
	s, ok := o.(*corev1.Service)
	if !ok {
		return
	}
	if core.NeedsClusterIP(s) && s.Spec.ClusterIP == "" && len(s.Spec.ClusterIPs) == 0 && len(s.Spec.IPFamilies) == 1 &&
		s.Spec.IPFamilies[0] == corev1.IPv4Protocol {
		s.Spec.ClusterIP, s.Spec.ClusterIPs = "10.96.63.20", []string{"10.96.63.20"}
	}
	for i := range s.Spec.Ports {
		if core.NeedsNodePorts(s) && s.Spec.Ports[i].NodePort == 0 {
			s.Spec.Ports[i].NodePort = int32(31000 + i)
		}
	}
	if core.NeedsHealthCheckNodePort(s) && s.Spec.HealthCheckNodePort == 0 {
		s.Spec.HealthCheckNodePort = 31999
	}
}

func call1(f func(resource.Object), o resource.Object) {
	if f != nil {
		f(o)
	}
}

func metaErrors(k *resource.Kind, o resource.Object) field.ErrorList {
	name := apivalidation.NameIsDNSSubdomain
	if k.Rules.ValidateName != nil {
		name = k.Rules.ValidateName
	}
	return apivalidation.ValidateObjectMetaAccessor(o, k.Namespaced, name, field.NewPath("metadata"))
}

func texts(errs field.ErrorList) []string {
	var out []string
	for _, e := range errs {
		if text := string(e.Type) + " " + e.Error(); !slices.Contains(out, text) {
			out = append(out, text)
		}
	}
	return out
}

func decode(t *testing.T, k *resource.Kind, object map[string]any) resource.Object {
	data, err := json.Marshal(object)
	if err != nil {
		t.Fatal(err)
	}
	obj := k.New()
	if err := json.Unmarshal(data, obj); err != nil {
		t.Fatal(err)
	}
	obj.GetObjectKind().SetGroupVersionKind(schema.GroupVersionKind{})
	return obj
}

func tree(t *testing.T, v any) map[string]any {
	data, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	var out map[string]any
	if err := json.Unmarshal(data, &out); err != nil {
		t.Fatal(err)
	}
	return out
}

// record asks the server.
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
			answers[q.name()] = parse(t, call(t, "POST", base+"?dryRun=All&fieldValidation=Ignore", object), c.Volatile)
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
			if err := json.Unmarshal(call(t, "PUT", statusPath(k, path), change(t, created, q.Status)), &created); err != nil {
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
		answers[q.name()] = parse(t, call(t, "PUT", path+"?dryRun=All&fieldValidation=Ignore", next), c.Volatile)
		call(t, "DELETE", base+"/"+name+"?gracePeriodSeconds=0", nil)
	}
}

func statusPath(k *resource.Kind, path string) string {
	if _, ok := k.Subresources["status"]; ok {
		return path + "/status"
	}
	return path
}

// unique makes a name that no earlier run has left behind.
func unique(i int) string { return fmt.Sprintf("observed-%d-%d", time.Now().Unix(), i) }

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
		write("PUT", statusPath(k, path), change(t, created, q.Status))
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
		TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, // a server of one's own, on loopback
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
	return out
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

func strip(object map[string]any, volatile []string) {
	for _, path := range append([]string{
		"metadata.uid", "metadata.resourceVersion", "metadata.creationTimestamp", "metadata.managedFields",
		"metadata.generation", "metadata.name", "metadata.namespace",
	}, volatile...) {
		put(object, path, nil)
	}
}

// differences lists what differs between two trees, leaving out what is empty in
// both.
func differences(path string, want, got any) []string {
	if w, ok := want.(map[string]any); ok {
		g, _ := got.(map[string]any)
		var out []string
		for _, key := range keys(w, g) {
			out = append(out, differences(path+"."+key, w[key], g[key])...)
		}
		return out
	}
	if g, ok := got.(map[string]any); ok && want == nil {
		var out []string
		for _, key := range keys(nil, g) {
			out = append(out, differences(path+"."+key, nil, g[key])...)
		}
		if len(g) == 0 {
			return nil
		}
		return out
	}
	w, wok := want.([]any)
	g, gok := got.([]any)
	if len(w) == 0 && len(g) == 0 && (wok || want == nil) && (gok || got == nil) {
		return nil
	}
	if wok && gok && len(w) == len(g) {
		var out []string
		for i := range w {
			out = append(out, differences(path+"["+strconv.Itoa(i)+"]", w[i], g[i])...)
		}
		return out
	}
	if reflect.DeepEqual(want, got) {
		return nil
	}
	a, _ := json.Marshal(want)
	b, _ := json.Marshal(got)
	return []string{fmt.Sprintf("%s: want %s, got %s", path, a, b)}
}

func keys(a, b map[string]any) []string {
	var out []string
	for k := range a {
		out = append(out, k)
	}
	for k := range b {
		if _, ok := a[k]; !ok {
			out = append(out, k)
		}
	}
	slices.Sort(out)
	return out
}

func clone(object map[string]any) map[string]any {
	data, _ := json.Marshal(object)
	var out map[string]any
	_ = json.Unmarshal(data, &out)
	return out
}

func change(t *testing.T, base any, set map[string]any) map[string]any {
	object, ok := base.(map[string]any)
	if !ok {
		t.Fatalf("no base %v", base)
	}
	object = clone(object)
	paths := make([]string, 0, len(set))
	for path := range set {
		paths = append(paths, path)
	}
	slices.Sort(paths)
	for _, path := range paths {
		put(object, path, expand(set[path]))
	}
	return object
}

// expand turns "@repeat a 300" into 300 times a, and "@ago 90m" into a time,
// anywhere in a value.
func expand(v any) any {
	switch x := v.(type) {
	case string:
		if f := strings.Fields(x); len(f) == 3 && f[0] == "@repeat" {
			n, _ := strconv.Atoi(f[2])
			return strings.Repeat(f[1], n)
		} else if len(f) == 2 && (f[0] == "@ago" || f[0] == "@microago") {
			layout := map[string]string{"@ago": time.RFC3339, "@microago": metav1.RFC3339Micro}[f[0]]
			d, _ := time.ParseDuration(f[1])
			return time.Now().Add(-d).UTC().Format(layout)
		}
	case []any:
		out := make([]any, len(x))
		for i := range x {
			out[i] = expand(x[i])
		}
		return out
	case map[string]any:
		out := make(map[string]any, len(x))
		for k, e := range x {
			out[expand(k).(string)] = expand(e)
		}
		return out
	}
	return v
}

// put sets the field at a path such as spec.containers[0].image or
// metadata.labels['a.b']; nil deletes.
func put(object map[string]any, path string, value any) {
	var steps []any
	for path != "" {
		switch {
		case strings.HasPrefix(path, "['"):
			end := strings.Index(path, "']")
			steps = append(steps, path[2:end])
			path = path[end+2:]
		case path[0] == '[':
			end := strings.IndexByte(path, ']')
			n, _ := strconv.Atoi(path[1:end])
			steps = append(steps, n)
			path = path[end+1:]
		case path[0] == '.':
			path = path[1:]
		default:
			end := strings.IndexAny(path, ".[")
			if end < 0 {
				end = len(path)
			}
			steps = append(steps, path[:end])
			path = path[end:]
		}
	}
	var at any = object
	for i, step := range steps {
		last := i == len(steps)-1
		switch s := step.(type) {
		case string:
			m, ok := at.(map[string]any)
			if !ok {
				return
			}
			if last {
				if value == nil {
					delete(m, s)
				} else {
					m[s] = value
				}
				return
			}
			if m[s] == nil {
				if value == nil {
					return
				}
				if n, isIndex := steps[i+1].(int); isIndex {
					m[s] = make([]any, n+1)
				} else {
					m[s] = map[string]any{}
				}
			} else if n, isIndex := steps[i+1].(int); isIndex {
				if list, ok := m[s].([]any); ok && n >= len(list) && value != nil {
					m[s] = append(list, make([]any, n+1-len(list))...)
				}
			}
			at = m[s]
		case int:
			list, ok := at.([]any)
			if !ok || s >= len(list) {
				return
			}
			if last {
				list[s] = value
				return
			}
			if list[s] == nil {
				list[s] = map[string]any{}
			}
			at = list[s]
		}
	}
}
