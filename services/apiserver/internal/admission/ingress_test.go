package admission

import (
	"testing"

	networkingv1 "k8s.io/api/networking/v1"
)

func TestDefaultIngressClass(t *testing.T) {
	class := &networkingv1.IngressClass{ObjectMeta: meta("", "edge")}
	class.Annotations = map[string]string{networkingv1.AnnotationIsDefaultIngressClass: "true"}
	own, none := "own", "<none>"
	ingress := func(class *string, annotations map[string]string) *networkingv1.Ingress {
		in := &networkingv1.Ingress{ObjectMeta: meta("ns", "i"), Spec: networkingv1.IngressSpec{IngressClassName: class}}
		in.Annotations = annotations
		return in
	}
	for name, test := range map[string]struct {
		state *objects
		op    Operation
		obj   *networkingv1.Ingress
		want  string
	}{
		"none named":       {state(class), Create, ingress(nil, nil), "edge"},
		"named":            {state(class), Create, ingress(&own, nil), "own"},
		"annotated":        {state(class), Create, ingress(nil, map[string]string{"kubernetes.io/ingress.class": "x"}), none},
		"no default class": {state(), Create, ingress(nil, nil), none},
		"update":           {state(class), Update, ingress(nil, nil), none},
	} {
		refused(t, name, (&DefaultIngressClass{State: test.state}).Admit(t.Context(), attributes(test.op, test.obj, nil)), "")
		got := none
		if test.obj.Spec.IngressClassName != nil {
			got = *test.obj.Spec.IngressClassName
		}
		if got != test.want {
			t.Errorf("%s: the class is %s, want %s", name, got, test.want)
		}
	}
}
