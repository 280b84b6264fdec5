package rest

import (
	"net/http"
	"net/url"
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"keelson.dev/services/apiserver/internal/pipeline"
	"keelson.dev/services/apiserver/internal/request"
)

// The headers of impersonation, in canonical form.
const (
	impersonateUser  = "Impersonate-User"
	impersonateGroup = "Impersonate-Group"
	impersonateUID   = "Impersonate-Uid"
	impersonateExtra = "Impersonate-Extra-"
)

// The groups and names that authentication gives.
const (
	groupAuthenticated   = "system:authenticated"
	groupUnauthenticated = "system:unauthenticated"
	userAnonymous        = "system:anonymous"
	accountPrefix        = "system:serviceaccount:"
	groupAccounts        = "system:serviceaccounts"
)

// impersonate lets a user act as another, if the pipeline allows each part of it.
func (x *exchange) impersonate() bool {
	header := x.r.Header
	name, groups := first(header[impersonateUser]), header[impersonateGroup]
	uid := first(header[impersonateUID])
	extra := extras(header)
	if name == "" {
		if len(groups) > 0 || uid != "" || len(extra) > 0 {
			x.fail(apierrors.NewBadRequest("requested impersonation without impersonating a user"))
			return false
		}
		return true
	}
	user := request.User{Name: name, UID: uid, Groups: groups, Extra: extra}
	namespace, account, isAccount := serviceAccount(name)
	if isAccount {
		if !x.may(pipeline.Target{Resource: core("serviceaccounts"), Namespace: namespace, Name: account}) {
			return false
		}
	} else if !x.may(pipeline.Target{Resource: core("users"), Name: name}) {
		return false
	}
	for _, g := range groups {
		if !x.may(pipeline.Target{Resource: core("groups"), Name: g}) {
			return false
		}
	}
	for key, values := range extra {
		for _, v := range values {
			if !x.may(pipeline.Target{Resource: authentication("userextras"), Subresource: key, Name: v}) {
				return false
			}
		}
	}
	if uid != "" && !x.may(pipeline.Target{Resource: authentication("uids"), Name: uid}) {
		return false
	}
	user.Groups = impersonatedGroups(name, namespace, isAccount, groups)
	for k := range header {
		if strings.HasPrefix(k, "Impersonate-") {
			delete(header, k)
		}
	}
	x.ctx = request.WithUser(x.ctx, user)
	return true
}

// impersonatedGroups are the groups asked for, with those that authentication
// itself would have given.
func impersonatedGroups(name, namespace string, isAccount bool, asked []string) []string {
	groups := append([]string(nil), asked...)
	if isAccount && len(groups) == 0 {
		groups = append(groups, groupAccounts, groupAccounts+":"+namespace)
	}
	for _, g := range groups {
		if g == groupAuthenticated || g == groupUnauthenticated {
			return groups
		}
	}
	if name == userAnonymous {
		return append(groups, groupUnauthenticated)
	}
	return append(groups, groupAuthenticated)
}

func (x *exchange) may(t pipeline.Target) bool {
	if err := x.h.api.Authorize(x.ctx, "impersonate", t); err != nil {
		x.fail(err)
		return false
	}
	return true
}

func core(resource string) schema.GroupVersionResource {
	return schema.GroupVersionResource{Version: "v1", Resource: resource}
}

func authentication(resource string) schema.GroupVersionResource {
	return schema.GroupVersionResource{Group: "authentication.k8s.io", Version: "v1", Resource: resource}
}

func first(values []string) string {
	if len(values) == 0 {
		return ""
	}
	return values[0]
}

func extras(header http.Header) map[string][]string {
	var extra map[string][]string
	for k, values := range header {
		key, ok := strings.CutPrefix(k, impersonateExtra)
		if !ok || key == "" {
			continue
		}
		key = strings.ToLower(key)
		if plain, err := url.PathUnescape(key); err == nil {
			key = plain
		}
		if extra == nil {
			extra = map[string][]string{}
		}
		extra[key] = append(extra[key], values...)
	}
	return extra
}

// serviceAccount takes "system:serviceaccount:NAMESPACE:NAME" apart.
func serviceAccount(name string) (namespace, account string, ok bool) {
	rest, ok := strings.CutPrefix(name, accountPrefix)
	if !ok {
		return "", "", false
	}
	namespace, account, ok = strings.Cut(rest, ":")
	return namespace, account, ok && namespace != "" && account != "" && !strings.Contains(account, ":")
}
