package bootstrap

import (
	"bufio"
	_ "embed"
	"fmt"
	"slices"
	"strings"

	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"keelson.dev/services/apiserver/internal/authz"
	"keelson.dev/services/apiserver/internal/resource"
)

//go:embed policy.txt
var policyText string

const (
	bootstrapLabel       = "kubernetes.io/bootstrapping"
	aggregatePrefix      = "rbac.authorization.k8s.io/aggregate-to-"
	controllerPrefix     = "system:controller:"
	controllerAggregates = "keelson.dev/aggregate-to-controllers"
	nodeRole             = "system:node"
)

// policy is the set of roles and bindings that every cluster starts with.
type policy struct {
	clusterRoles        []*rbacv1.ClusterRole
	roles               []*rbacv1.Role
	clusterRoleBindings []*rbacv1.ClusterRoleBinding
	roleBindings        []*rbacv1.RoleBinding
}

// defaults returns the policy of policy.txt and the role of nodes.
func defaults() (*policy, error) {
	p, err := parsePolicy(policyText)
	if err != nil {
		return nil, err
	}
	p.clusterRoles = append(p.clusterRoles, &rbacv1.ClusterRole{ObjectMeta: defaultMeta("", nodeRole), Rules: authz.NodeRules()})
	for _, r := range p.clusterRoles {
		rules, ok, err := authz.Aggregate(r, p.clusterRoles)
		if err != nil {
			return nil, err
		}
		if ok {
			r.Rules = rules
		}
	}
	// Repeat for nested aggregation: admin includes edit, which includes view.
	for range 2 {
		for _, r := range p.clusterRoles {
			if rules, ok, err := authz.Aggregate(r, p.clusterRoles); err == nil && ok {
				r.Rules = rules
			}
		}
	}
	return p, nil
}

func defaultMeta(namespace, name string) metav1.ObjectMeta {
	return metav1.ObjectMeta{
		Namespace:   namespace,
		Name:        name,
		Labels:      map[string]string{bootstrapLabel: "rbac-defaults"},
		Annotations: map[string]string{rbacv1.AutoUpdateAnnotationKey: "true"},
	}
}

// parsePolicy parses the format that policy.txt describes.
func parsePolicy(text string) (*policy, error) {
	p := &policy{}
	var rules *[]rbacv1.PolicyRule // of the current role
	lines := bufio.NewScanner(strings.NewReader(text))
	for number := 1; lines.Scan(); number++ {
		line := lines.Text()
		words := strings.Fields(line)
		if len(words) == 0 || strings.HasPrefix(words[0], "#") {
			continue
		}
		var err error
		if strings.HasPrefix(line, " ") {
			err = addRule(rules, words)
		} else {
			rules, err = p.add(words)
		}
		if err != nil {
			return nil, fmt.Errorf("policy.txt: line %d: %w", number, err)
		}
	}
	return p, lines.Err()
}

// add parses a line that starts an entry. It returns where the entry's rules go, or nil.
func (p *policy) add(words []string) (*[]rbacv1.PolicyRule, error) {
	switch {
	case words[0] == "clusterrole" && len(words) >= 2:
		return p.clusterRole(words[1], words[2:]), nil
	case words[0] == "role" && len(words) == 3:
		r := &rbacv1.Role{ObjectMeta: defaultMeta(words[1], words[2])}
		p.roles = append(p.roles, r)
		return &r.Rules, nil
	case words[0] == "controller" && len(words) == 2:
		name := controllerPrefix + words[1]
		err := p.bind(name, name, []string{"account:" + metav1.NamespaceSystem + "/" + words[1]})
		return p.clusterRole(name, []string{controllerAggregates}), err
	case words[0] == "aggregate" && len(words) >= 4 && words[2] == "from":
		p.clusterRole(words[1], words[4:])
		last := p.clusterRoles[len(p.clusterRoles)-1]
		last.AggregationRule = &rbacv1.AggregationRule{ClusterRoleSelectors: []metav1.LabelSelector{
			{MatchLabels: map[string]string{aggregateLabel(words[3]): "true"}},
		}}
		return nil, nil
	case words[0] == "bind" && len(words) >= 3 && words[2] == "to":
		_, role, local := strings.Cut(words[1], "/")
		if !local {
			role = words[1]
		}
		return nil, p.bind(words[1], role, words[3:])
	case words[0] == "bind" && len(words) >= 5 && words[2] == "as" && words[4] == "to":
		return nil, p.bind(words[1], words[3], words[5:])
	}
	return nil, fmt.Errorf("unknown entry %q", strings.Join(words, " "))
}

func (p *policy) clusterRole(name string, labels []string) *[]rbacv1.PolicyRule {
	r := &rbacv1.ClusterRole{ObjectMeta: defaultMeta("", name)}
	for _, l := range labels {
		r.Labels[aggregateLabel(l)] = "true"
	}
	p.clusterRoles = append(p.clusterRoles, r)
	return &r.Rules
}

func aggregateLabel(word string) string {
	if short, ok := strings.CutPrefix(word, "to-"); ok {
		return aggregatePrefix + short
	}
	return word
}

func (p *policy) bind(where, role string, names []string) error {
	var subjects []rbacv1.Subject
	for _, w := range names {
		kind, name, _ := strings.Cut(w, ":")
		switch kind {
		case "user":
			subjects = append(subjects, rbacv1.Subject{APIGroup: rbacv1.GroupName, Kind: rbacv1.UserKind, Name: name})
		case "group":
			subjects = append(subjects, rbacv1.Subject{APIGroup: rbacv1.GroupName, Kind: rbacv1.GroupKind, Name: name})
		case "account":
			namespace, account, _ := strings.Cut(name, "/")
			subjects = append(subjects, rbacv1.Subject{Kind: rbacv1.ServiceAccountKind, Namespace: namespace, Name: account})
		default:
			return fmt.Errorf("%q is neither user:, group: nor account:", w)
		}
	}
	ref := rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: role}
	if namespace, name, local := strings.Cut(where, "/"); local {
		ref.Kind = "Role"
		p.roleBindings = append(p.roleBindings, &rbacv1.RoleBinding{ObjectMeta: defaultMeta(namespace, name), RoleRef: ref, Subjects: subjects})
		return nil
	}
	p.clusterRoleBindings = append(p.clusterRoleBindings, &rbacv1.ClusterRoleBinding{ObjectMeta: defaultMeta("", where), RoleRef: ref, Subjects: subjects})
	return nil
}

func addRule(rules *[]rbacv1.PolicyRule, words []string) error {
	if rules == nil || len(words) < 3 || len(words) > 4 {
		return fmt.Errorf("%q is not a valid rule of a role", strings.Join(words, " "))
	}
	var verbs []string
	for _, v := range strings.Split(words[0], ",") {
		switch v {
		case "read":
			verbs = append(verbs, "get", "list", "watch")
		case "write":
			verbs = append(verbs, "create", "delete", "deletecollection", "patch", "update")
		default:
			verbs = append(verbs, v)
		}
	}
	slices.Sort(verbs)
	verbs = slices.Compact(verbs)
	if words[1] == "path" {
		*rules = append(*rules, rbacv1.PolicyRule{Verbs: verbs, NonResourceURLs: strings.Split(words[2], ",")})
		return nil
	}
	rule := rbacv1.PolicyRule{Verbs: verbs, APIGroups: strings.Split(words[1], ","), Resources: strings.Split(words[2], ",")}
	for i, g := range rule.APIGroups {
		if g == "core" {
			rule.APIGroups[i] = ""
		}
	}
	if len(words) == 4 {
		rule.ResourceNames = strings.Split(words[3], ",")
	}
	*rules = append(*rules, rule)
	return nil
}

// objects returns all objects of the policy.
func (p *policy) objects() (list []resource.Object) {
	for _, o := range p.clusterRoles {
		list = append(list, o)
	}
	for _, o := range p.clusterRoleBindings {
		list = append(list, o)
	}
	for _, o := range p.roles {
		list = append(list, o)
	}
	for _, o := range p.roleBindings {
		list = append(list, o)
	}
	return list
}
