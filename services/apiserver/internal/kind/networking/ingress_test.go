package networking_test

import (
	"slices"
	"strings"
	"testing"
	"time"

	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"sigs.k8s.io/yaml"

	"keelson.dev/services/apiserver/internal/kind/networking"
	"keelson.dev/services/apiserver/internal/resource"
)

// object returns an object with the defaults of its kind.
func object(t *testing.T, k *resource.Kind, text string) resource.Object {
	t.Helper()
	o := k.New()
	if err := yaml.UnmarshalStrict([]byte(text), o); err != nil {
		t.Fatalf("%s: %v", text, err)
	}
	if k.Rules.Default != nil {
		k.Rules.Default(o)
	}
	return o
}

func errorsOf(list field.ErrorList) (out []string) {
	for _, e := range list {
		out = append(out, e.Error())
	}
	return out
}

const rules = `spec: {rules: [{host: a.example, http: {paths: [{path: /, pathType: Prefix, backend: {service: {name: web, port: {number: 80}}}}]}}]}`

func TestIngressIsValidated(t *testing.T) {
	path := func(path string) string {
		return `spec: {rules: [{http: {paths: [` + path + `]}}]}`
	}
	web := `backend: {service: {name: web, port: {number: 80}}}`
	for name, test := range map[string]struct{ text, want string }{
		"whole":                      {rules, ""},
		"default backend alone":      {`spec: {defaultBackend: {service: {name: web, port: {name: http}}}}`, ""},
		"service that begins with 0": {`spec: {defaultBackend: {service: {name: 0web, port: {name: http}}}}`, ""},
		"resource":                   {`spec: {defaultBackend: {resource: {apiGroup: example.com, kind: Bucket, name: b}}}`, ""},
		"wildcard":                   {strings.Replace(rules, "a.example", `"*.example"`, 1), ""},
		"rule without paths":         {`spec: {rules: [{host: a.example}]}`, ""},
		"nothing":                    {`spec: {}`, "spec: Invalid value: null: either `defaultBackend` or `rules` must be specified"},
		"address as host":            {strings.Replace(rules, "a.example", "10.0.0.1", 1), `spec.rules[0].host: Invalid value: "10.0.0.1": must be a DNS name, not an IP address`},
		"inner wildcard":             {strings.Replace(rules, "a.example", `"a.*.example"`, 1), `spec.rules[0].host: Invalid value: "a.*.example": a wildcard DNS-1123 subdomain must start with '*.'`},
		"upper case":                 {strings.Replace(rules, "a.example", "A.example", 1), `spec.rules[0].host: Invalid value: "A.example": a lowercase RFC 1123 subdomain`},
		"no paths":                   {`spec: {rules: [{http: {paths: []}}]}`, "spec.rules[0].http.paths: Required value"},
		"no path type":               {path(`{path: /, ` + web + `}`), "spec.rules[0].http.paths[0].pathType: Required value: pathType must be specified"},
		"unknown path type":          {path(`{path: /, pathType: Regex, ` + web + `}`), `pathType: Unsupported value: "Regex": supported values: "Exact", "ImplementationSpecific", "Prefix"`},
		"relative path":              {path(`{path: a, pathType: Exact, ` + web + `}`), `path: Invalid value: "a": must be an absolute path`},
		"no path":                    {path(`{pathType: Prefix, ` + web + `}`), `path: Invalid value: "": must be an absolute path`},
		"no path, own type":          {path(`{pathType: ImplementationSpecific, ` + web + `}`), ""},
		"relative, own type":         {path(`{path: a, pathType: ImplementationSpecific, ` + web + `}`), "must be an absolute path"},
		"empty element":              {path(`{path: /a//b, pathType: Prefix, ` + web + `}`), "must not contain '//'"},
		"escaped slash":              {path(`{path: /a%2Fb, pathType: Prefix, ` + web + `}`), "must not contain '%2F'"},
		"parent at the end":          {path(`{path: /a/.., pathType: Prefix, ` + web + `}`), "cannot end with '/..'"},
		"no backend":                 {path(`{path: /, pathType: Prefix, backend: {}}`), `backend: Invalid value: "": resource or service backend is required`},
		"two backends":               {path(`{path: /, pathType: Prefix, backend: {service: {name: web, port: {number: 80}}, resource: {kind: B, name: b}}}`), "cannot set both resource and service backends"},
		"no service name":            {`spec: {defaultBackend: {service: {port: {number: 80}}}}`, "spec.defaultBackend.service.name: Required value"},
		"no port":                    {`spec: {defaultBackend: {service: {name: web}}}`, "spec.defaultBackend: Required value: port name or number is required"},
		"port twice":                 {`spec: {defaultBackend: {service: {name: web, port: {name: a, number: 80}}}}`, "cannot set both port name & port number"},
		"port out of range":          {`spec: {defaultBackend: {service: {name: web, port: {number: 65536}}}}`, "spec.defaultBackend.service.port.number: Invalid value: 65536"},
		"resource without kind":      {`spec: {defaultBackend: {resource: {name: b}}}`, "spec.defaultBackend.resource.kind: Required value"},
		"resource with a slash":      {`spec: {defaultBackend: {resource: {kind: B, name: a/b}}}`, `spec.defaultBackend.resource.name: Invalid value: "a/b": may not contain '/'`},
		"TLS host":                   {`spec: {defaultBackend: {service: {name: web, port: {number: 80}}}, tls: [{hosts: [a_b]}]}`, `spec.tls[0].hosts[0]: Invalid value: "a_b"`},
		"TLS secret":                 {`spec: {defaultBackend: {service: {name: web, port: {number: 80}}}, tls: [{secretName: A}]}`, `spec.tls[0].secretName: Invalid value: "A"`},
		"class":                      {strings.Replace(rules, "spec: {", "spec: {ingressClassName: A, ", 1), `spec.ingressClassName: Invalid value: "A"`},
		"class twice, different":     {`metadata: {annotations: {kubernetes.io/ingress.class: a}}` + "\n" + strings.Replace(rules, "spec: {", "spec: {ingressClassName: b, ", 1), "annotations.kubernetes.io/ingress.class: Invalid value: \"a\": must match `ingressClassName` when both are specified"},
		"class twice, the same":      {`metadata: {annotations: {kubernetes.io/ingress.class: b}}` + "\n" + strings.Replace(rules, "spec: {", "spec: {ingressClassName: b, ", 1), ""},
	} {
		k := networking.Ingress()
		got := errorsOf(k.Rules.Validate(object(t, k, test.text)))
		if test.want == "" && len(got) > 0 || test.want != "" && (len(got) != 1 || !strings.Contains(got[0], test.want)) {
			t.Errorf("%s: got %q, want %q", name, got, test.want)
		}
	}
}

// What earlier versions of Kubernetes accepted may be kept in an update, but not be added.
func TestIngressesOfEarlierVersionsCanBeUpdated(t *testing.T) {
	k := networking.Ingress()
	secret := object(t, k, `spec: {defaultBackend: {service: {name: web, port: {number: 80}}}, tls: [{secretName: A_B}]}`)
	wildcard := object(t, k, `spec: {rules: [{host: "*.example", http: {paths: [{path: a, pathType: Exact, backend: {service: {name: web, port: {number: 80}}}}]}}]}`)
	valid := object(t, k, rules)
	for name, test := range map[string]struct {
		obj, old resource.Object
		valid    bool
	}{
		"secret kept": {secret, secret, true}, "secret added": {secret, valid, false},
		"wildcard kept": {wildcard, wildcard, true}, "wildcard added": {wildcard, valid, false},
	} {
		if got := errorsOf(k.Rules.ValidateUpdate(test.obj, test.old)); (len(got) == 0) != test.valid {
			t.Errorf("%s: %q", name, got)
		}
	}
}

func TestIngressClassIsValidated(t *testing.T) {
	k := networking.IngressClass()
	parameters := func(p string) string {
		return `spec: {controller: example.com/c, parameters: {apiGroup: example.com, kind: P, name: p` + p + `}}`
	}
	for name, test := range map[string]struct{ text, want string }{
		"whole":                  {`spec: {controller: example.com/c}`, ""},
		"parameters":             {parameters(""), ""},
		"of a namespace":         {parameters(", scope: Namespace, namespace: ns"), ""},
		"no controller":          {`spec: {}`, "spec.controller: Required value"},
		"controller, no domain":  {`spec: {controller: c}`, `spec.controller: Invalid value: "c": must be a domain-prefixed path`},
		"long controller":        {`spec: {controller: example.com/` + strings.Repeat("c", 250) + `}`, "spec.controller: Too long"},
		"namespace, none":        {parameters(", scope: Namespace"), "spec.parameters.namespace: Required value: `parameters.scope` is set to 'Namespace'"},
		"cluster with namespace": {parameters(", namespace: ns"), "spec.parameters.namespace: Forbidden: `parameters.scope` is set to 'Cluster'"},
		"unknown scope":          {parameters(", scope: Node"), `spec.parameters.scope: Unsupported value: "Node": supported values: "Cluster", "Namespace"`},
		"no name":                {`spec: {controller: example.com/c, parameters: {kind: P}}`, "spec.parameters.name: Required value"},
	} {
		got := errorsOf(k.Rules.Validate(object(t, k, test.text)))
		if test.want == "" && len(got) > 0 || test.want != "" && (len(got) != 1 || !strings.Contains(got[0], test.want)) {
			t.Errorf("%s: got %q, want %q", name, got, test.want)
		}
	}
	a, b := object(t, k, `spec: {controller: example.com/a}`), object(t, k, `spec: {controller: example.com/b}`)
	if got := errorsOf(k.Rules.ValidateUpdate(b, a)); len(got) != 1 || !strings.Contains(got[0], `spec.controller: Invalid value: "example.com/b": field is immutable`) {
		t.Errorf("another controller: %q", got)
	}
}

func TestIngressStatusIsValidated(t *testing.T) {
	k := networking.Ingress()
	old := object(t, k, rules)
	for text, want := range map[string]string{
		`status: {loadBalancer: {ingress: [{ip: 10.0.0.1}, {hostname: lb.example}]}}`: "",
		`status: {loadBalancer: {ingress: [{ip: 10.0.0}]}}`:                           "status.loadBalancer.ingress[0].ip",
		`status: {loadBalancer: {ingress: [{hostname: 10.0.0.1}]}}`:                   "must be a DNS name, not an IP address",
		`status: {loadBalancer: {ingress: [{hostname: a_b}]}}`:                        "status.loadBalancer.ingress[0].hostname",
	} {
		got := errorsOf(k.Subresources["status"].View.ValidateUpdate(object(t, k, text), old))
		if want == "" && len(got) > 0 || want != "" && (len(got) != 1 || !strings.Contains(got[0], want)) {
			t.Errorf("%s: got %q, want %q", text, got, want)
		}
	}
}

func TestIngressTables(t *testing.T) {
	host := func(h string) string { return "{host: " + h + "}" }
	for text, want := range map[string][]any{
		`spec: {defaultBackend: {service: {name: web, port: {number: 80}}}}`: {"<none>", "*", "", "80"},
		`{spec: {ingressClassName: c, rules: [` + strings.Join([]string{host("a"), host("b"), host("c")}, ", ") + `], tls: [{}]},
		  status: {loadBalancer: {ingress: [{ip: 10.0.0.2}, {hostname: lb}, {ip: 10.0.0.1}, {ip: 10.0.0.2}]}}}`: {"c", "a,b,c", "10.0.0.1,10.0.0.2,lb", "80, 443"},
		`spec: {rules: [` + strings.Join([]string{host("a"), host("b"), host("c"), host("d"), host("e")}, ", ") + `]}`: {"<none>", "a,b,c + 2 more...", "", "80"},
	} {
		k := networking.Ingress()
		if got := k.Cells(object(t, k, text)); !slices.Equal(got[:4], want) {
			t.Errorf("%s: %v, want %v", text, got[:4], want)
		}
	}
	k := networking.IngressClass()
	c := object(t, k, `{metadata: {annotations: {ingressclass.kubernetes.io/is-default-class: "true"}}, spec: {controller: example.com/c, parameters: {apiGroup: example.com, kind: P, name: p}}}`)
	if got := k.Cells(c); !slices.Equal(got[:2], []any{"example.com/c", "P.example.com/p"}) || !k.Marked(c) {
		t.Errorf("class: %v, marked %v", got, k.Marked(c))
	}
}

func TestDefaultIngressClass(t *testing.T) {
	class := func(name, isDefault string, age time.Duration) resource.Object {
		return &networkingv1.IngressClass{ObjectMeta: metav1.ObjectMeta{
			Name: name, CreationTimestamp: metav1.NewTime(time.Unix(1_800_000_000, 0).Add(-age)),
			Annotations: map[string]string{networkingv1.AnnotationIsDefaultIngressClass: isDefault},
		}}
	}
	for want, classes := range map[string][]resource.Object{
		"":       {class("a", "false", 0), class("b", "", 0)},
		"newest": {class("a", "true", time.Hour), class("newest", "true", time.Minute), class("z", "false", 0)},
		"first":  {class("second", "true", 0), class("first", "true", 0)},
	} {
		got := networking.PickDefaultClass(slices.Values(classes))
		if want == "" && got != nil || want != "" && (got == nil || got.GetName() != want) {
			t.Errorf("got %v, want %q", got, want)
		}
	}
}
