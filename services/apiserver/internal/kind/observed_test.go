package kind_test

import (
	"cmp"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"keelson.dev/services/apiserver/internal/kind"
	"keelson.dev/services/apiserver/internal/kind/core"
	"keelson.dev/services/apiserver/internal/resource"
)

// These tests compare the kinds with the responses of a Kubernetes 1.37 API server to the same
// requests. A file testdata/KIND.yaml contains objects and changes to them;
// testdata/KIND.answers.json contains the responses, recorded with
//
//	go test ./internal/kind -run Observed -observe https://HOST:PORT -token TOKEN
//
// from a server that is used for nothing else. Where Keelson differs on purpose, the case says
// how, under `keelson`.
var (
	observe = flag.String("observe", "", "API server to record responses from")
	token   = flag.String("token", "", "bearer token for -observe")
)

// cases is a file of requests for one kind.
type cases struct {
	Group, Version, Resource string
	// Volatile are fields that differ between any two responses.
	Volatile []string
	Bases    map[string]any
	Cases    []question
}

type question struct {
	Base string
	// Set changes fields of the base before it is created. null deletes a field.
	Set map[string]any
	// Update, if not nil, changes the created object and updates it, through a subresource if one
	// is named.
	Update      map[string]any
	Subresource string
	// Status is set in the created object before it is updated or shown, through the subresource
	// Through, which is status if it is empty.
	Status  map[string]any
	Through string
	// Table requests the object's row of `kubectl get` instead, after a delete if Deleted is true
	// (the object then needs a finalizer).
	Table   bool
	Deleted bool
	// Refused is true if Keelson refuses what Kubernetes may accept, because Keelson does not
	// support it.
	Refused bool
	// Keelson, if not nil, lists the errors where Keelson differs on purpose. If it is empty,
	// Keelson accepts the object.
	Keelson *[]string
	// KeelsonSet lists the differences in an object that Keelson accepts.
	KeelsonSet map[string]any
}

// answer is either an object or a list of errors.
type answer struct {
	Object map[string]any `json:"object,omitempty"`
	Errors []string       `json:"errors,omitempty"`
	// Warnings of an accepted object.
	Warnings []string `json:"warnings,omitempty"`
	// Columns are the name, type, format and priority of each column.
	Columns []string `json:"columns,omitempty"`
	Cells   []any    `json:"cells,omitempty"`
}

// madeUpUID replaces any uid that a server generates.
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
		parts = append(parts, cmp.Or(q.Through, "status"), text(q.Status))
	}
	if q.Deleted {
		parts = append(parts, "deleted")
	}
	return strings.Join(parts, " ")
}

func TestObserved(t *testing.T) {
	table := resource.NewTable(kind.All()...)
	for file, c := range readCases(t) {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".yaml"), func(t *testing.T) {
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

func caseFiles(t *testing.T) []string {
	files, err := filepath.Glob("testdata/*.yaml")
	if err != nil || len(files) == 0 {
		t.Fatalf("found no files of cases (%v)", err)
	}
	return files
}

func compare(t *testing.T, k *resource.Kind, c *cases, q question, answers map[string]answer) {
	t.Run(q.name(), func(t *testing.T) {
		want, ok := answers[q.name()]
		if !ok {
			t.Fatal("no response is recorded; see the comment at the top of the file")
		}
		got := ask(t, k, c, q)
		if q.Refused {
			if !slices.ContainsFunc(got.Errors, func(e string) bool { return strings.HasSuffix(e, "not supported by Keelson") }) {
				t.Errorf("want an error that Keelson does not support this, got %q", got.Errors)
			}
			return
		}
		if q.Keelson != nil {
			want = answer{Object: want.Object, Errors: *q.Keelson, Warnings: want.Warnings}
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
		slices.Sort(want.Warnings)
		slices.Sort(got.Warnings)
		if len(want.Errors) == 0 && len(got.Errors) == 0 && !slices.Equal(want.Warnings, got.Warnings) {
			t.Errorf("warnings\n  want %q\n  got  %q", want.Warnings, got.Warnings)
		}
		if k.Virtual() {
			return // the action determines the response
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

// ask applies a request to the kind's rules, in the way that the pipeline does.
func ask(t *testing.T, k *resource.Kind, c *cases, q question) answer {
	object := change(t, c.Bases[q.Base], q.Set)
	if k.Namespaced {
		put(object, "metadata.namespace", "observed")
	}
	obj := decode(t, k, object)
	r := k.Rules
	call1(r.Default, obj)
	if !k.Virtual() {
		obj.SetUID(madeUpUID)
	}
	call1(r.PrepareCreate, obj)
	claim(obj)
	var errs field.ErrorList
	if !k.Virtual() {
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
		out := answer{Object: tree(t, obj)}
		if r.Warnings != nil {
			out.Warnings = r.Warnings(obj, nil)
		}
		return out
	}
	obj = decode(t, k, change(t, tree(t, obj), q.Status))
	if q.Through != "" {
		call1(r.Default, obj)
	}
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
		t.Error("the update modified the old object, which is shared")
	}
	out := answer{Object: tree(t, next)}
	if r.Warnings != nil {
		out.Warnings = r.Warnings(next, obj)
	}
	return out
}

// row returns the row of an object.
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
		name := obj.GetName()
		if k.Marked != nil && k.Marked(obj) {
			name += " (default)"
		}
		cells = append(cells, name)
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
		if c.Format == "name" { // the recorder generates names
			out.Cells[i] = observedName.ReplaceAllString(out.Cells[i].(string), "observed")
		}
	}
	return out
}

var (
	seconds      = regexp.MustCompile(`^\d+s$`)
	observedName = regexp.MustCompile(`^observed-[0-9-]+`)
)

// structured matches values that Kubernetes formats with its internal type names.
var structured = regexp.MustCompile(`((?:Invalid|Unsupported|Duplicate) value: )[\[{].*[\]}](: |$)`)

// allocated matches addresses that a server allocates.
var allocated = regexp.MustCompile(`10\.96\.\d+\.\d+`)

// plain removes irrelevant differences from messages: structured values and printed differences.
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

// claim does what admission and allocation do.
func claim(o resource.Object) {
	if c, ok := o.(*certificatesv1.CertificateSigningRequest); ok {
		c.Spec.Username = "admin"
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
