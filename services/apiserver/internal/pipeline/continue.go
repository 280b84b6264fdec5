package pipeline

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"keelson.dev/services/apiserver/internal/store"
)

// continueToken is the position at which a list was cut, in the form of Kubernetes' own tokens.
type continueToken struct {
	APIVersion      string `json:"v"`
	ResourceVersion int64  `json:"rv"`
	StartKey        string `json:"start"`
}

const continueVersion = "meta.k8s.io/v1"

// inconsistent, as a token's revision, means that the list continues in the current state.
const inconsistent store.Revision = -1

// encodeContinue returns the token for continuing after the key last.
func encodeContinue(prefix, last string, rev store.Revision) string {
	text, err := json.Marshal(continueToken{
		APIVersion:      continueVersion,
		ResourceVersion: int64(rev),
		StartKey:        strings.TrimPrefix(last, prefix) + "\x00",
	})
	if err != nil {
		return "" // cannot happen: the token consists of strings and numbers
	}
	return base64.RawURLEncoding.EncodeToString(text)
}

// decodeContinue returns the key after which the list continues, and its revision.
func decodeContinue(token, prefix string) (string, store.Revision, error) {
	data, err := base64.RawURLEncoding.DecodeString(token)
	var c continueToken
	if err == nil {
		err = json.Unmarshal(data, &c)
	}
	switch {
	case err != nil:
	case c.APIVersion != continueVersion:
		err = errors.New("server does not recognize this encoded version " + c.APIVersion)
	case c.ResourceVersion == 0:
		err = errors.New("incorrect encoded start resourceVersion (version meta.k8s.io/v1)")
	case c.StartKey == "":
		err = errors.New("encoded start key empty (version meta.k8s.io/v1)")
	case strings.HasPrefix(c.StartKey, "/") || strings.Contains(c.StartKey, ".."):
		err = errors.New(c.StartKey)
	}
	if err != nil {
		return "", 0, fmt.Errorf("invalid continue token: continue key is not valid: %w", err)
	}
	return prefix + strings.TrimSuffix(c.StartKey, "\x00"), store.Revision(c.ResourceVersion), nil
}

// errExpiredContinue returns Kubernetes' error, with a token for continuing inconsistently.
func errExpiredContinue(prefix, after string) error {
	err := apierrors.NewResourceExpired("The provided continue parameter is too old " +
		"to display a consistent list result. You can start a new list without the continue parameter, or use the " +
		"continue token in this response to retrieve the remainder of the results. Continuing with the provided " +
		"token results in an inconsistent list - objects that were created, modified, or deleted between the time " +
		"the first chunk was returned and now may show up in the list.")
	err.ErrStatus.ListMeta.Continue = encodeContinue(prefix, after, inconsistent)
	return err
}
