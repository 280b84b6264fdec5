package core

import (
	"fmt"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	validationutil "k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"keelson.dev/services/apiserver/internal/kind/check"
	"keelson.dev/services/apiserver/internal/kind/column"
	"keelson.dev/services/apiserver/internal/kind/row"
	"keelson.dev/services/apiserver/internal/resource"
)

// Endpoints returns the row of endpoints.
func Endpoints() *resource.Kind {
	k := row.Namespaced[corev1.Endpoints, corev1.EndpointsList](corev1.SchemeGroupVersion, "endpoints", "services/endpoints")
	k.ShortNames = []string{"ep"}
	k.NoGeneration = true
	k.Columns = []metav1.TableColumnDefinition{
		column.Text("Endpoints", column.Doc(corev1.Endpoints{}, "subsets")), column.AgeColumn(),
	}
	k.Cells = func(o resource.Object) []any {
		e := o.(*corev1.Endpoints)
		return []any{endpointsText(e), column.Age(e.CreationTimestamp)}
	}
	k.Rules = resource.Typed[*corev1.Endpoints]{
		Default: func(e *corev1.Endpoints) {
			for i := range e.Subsets {
				for j := range e.Subsets[i].Ports {
					if e.Subsets[i].Ports[j].Protocol == "" {
						e.Subsets[i].Ports[j].Protocol = corev1.ProtocolTCP
					}
				}
			}
		},
		Validate:       validateEndpoints,
		ValidateUpdate: func(e, _ *corev1.Endpoints) field.ErrorList { return validateEndpoints(e) },
		Warnings:       func(e, _ *corev1.Endpoints) []string { return endpointsWarnings(e) },
		CreateOnUpdate: true,
	}.Rules()
	return k
}

// endpointsWarnings returns warnings about addresses in an unusual form, unless the controller
// manages the object.
func endpointsWarnings(o *corev1.Endpoints) []string {
	if o.Labels["endpoints.kubernetes.io/managed-by"] == "endpoint-controller" {
		return nil
	}
	var list []string
	for i := range o.Subsets {
		p := field.NewPath("subsets").Index(i)
		for j := range o.Subsets[i].Addresses {
			list = append(list, validationutil.GetWarningsForIP(p.Child("addresses").Index(j).Child("ip"), o.Subsets[i].Addresses[j].IP)...)
		}
		for j := range o.Subsets[i].NotReadyAddresses {
			list = append(list, validationutil.GetWarningsForIP(p.Child("notReadyAddresses").Index(j).Child("ip"), o.Subsets[i].NotReadyAddresses[j].IP)...)
		}
	}
	return list
}

func validateEndpoints(o *corev1.Endpoints) field.ErrorList {
	var e check.Errors
	for i := range o.Subsets {
		s, p := &o.Subsets[i], field.NewPath("subsets").Index(i)
		if len(s.Addresses)+len(s.NotReadyAddresses) == 0 {
			e.Required(p, "must specify `addresses` or `notReadyAddresses`")
		}
		for j := range s.Addresses {
			validateEndpointAddress(&e, &s.Addresses[j], p.Child("addresses").Index(j))
		}
		for j := range s.NotReadyAddresses {
			validateEndpointAddress(&e, &s.NotReadyAddresses[j], p.Child("notReadyAddresses").Index(j))
		}
		for j := range s.Ports {
			validateEndpointPort(&e, &s.Ports[j], len(s.Ports) > 1, p.Child("ports").Index(j))
		}
	}
	return e.List
}

func validateEndpointAddress(e *check.Errors, a *corev1.EndpointAddress, p *field.Path) {
	if errs := validationutil.IsValidIPForLegacyField(p.Child("ip"), a.IP, true, nil); len(errs) > 0 {
		e.Append(errs)
		e.Invalid(p.Child("ip"), a.IP, "must be a valid IP address")
	} else {
		notLocal(e, a.IP, p.Child("ip"))
	}
	if a.Hostname != "" {
		e.Messages(p, "hostname", a.Hostname, check.Label(a.Hostname))
	}
	if a.NodeName != nil {
		e.Messages(p, "nodeName", *a.NodeName, check.Subdomain(*a.NodeName))
	}
}

func validateEndpointPort(e *check.Errors, port *corev1.EndpointPort, named bool, p *field.Path) {
	switch {
	case port.Name == "" && named:
		e.Required(p.Child("name"), "")
	case port.Name != "":
		e.Messages(p, "name", port.Name, check.Label(port.Name))
	}
	e.PortNumber(p, "port", int(port.Port))
	check.OneOf(e, p, "protocol", port.Protocol, corev1.ProtocolSCTP, corev1.ProtocolTCP, corev1.ProtocolUDP)
	if port.AppProtocol != nil {
		e.Messages(p, "appProtocol", *port.AppProtocol, check.LabelKey(*port.AppProtocol))
	}
}

// shownEndpoints is how many endpoints a cell contains.
const shownEndpoints = 3

func endpointsText(e *corev1.Endpoints) string {
	var texts []string
	count := 0
	add := func(text string) {
		if count++; count <= shownEndpoints {
			texts = append(texts, text)
		}
	}
	for i := range e.Subsets {
		s := &e.Subsets[i]
		if len(s.Ports) == 0 {
			for _, a := range s.Addresses {
				add(a.IP)
			}
		}
		for _, port := range s.Ports {
			for _, a := range s.Addresses {
				add(hostPort(a.IP, port.Port))
			}
		}
	}
	if len(e.Subsets) == 0 {
		return column.None
	}
	text := strings.Join(texts, ",")
	if count > shownEndpoints {
		text += fmt.Sprintf(" + %d more...", count-shownEndpoints)
	}
	return text
}

func hostPort(ip string, port int32) string {
	for i := range len(ip) {
		if ip[i] == ':' {
			return "[" + ip + "]:" + strconv.Itoa(int(port))
		}
	}
	return ip + ":" + strconv.Itoa(int(port))
}
