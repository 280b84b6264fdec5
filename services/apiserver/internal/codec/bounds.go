package codec

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"strconv"
	"strings"
	"sync"

	"google.golang.org/protobuf/encoding/protowire"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	apiresource "k8s.io/apimachinery/pkg/api/resource"
)

const (
	// MaxDepth is how deep JSON and YAML may nest. Kubernetes' own types nest less than 30
	// levels; the JSON library allows 10,000.
	MaxDepth = 1000
	// maxObjects bounds the number of objects in a JSON body: an empty object takes two bytes of
	// text and up to 800 bytes of memory.
	maxObjects = 50_000
	// maxDecoded bounds the memory that the messages of a protobuf body take, in bytes.
	maxDecoded = 64 << 20
	// smallBody is the size up to which a body's decoded form is harmless, whatever it contains.
	smallBody = 64 << 10
	// maxQuantity and maxNegativeExponent bound the text of a quantity: the time and memory that
	// parsing takes grow with the square of the number of digits, and 1e-1000000000 has a billion
	// of them.
	maxQuantity         = 1 << 10
	maxNegativeExponent = 9_999
)

var errQuantity = fmt.Errorf("a quantity has at most %d characters and an exponent of at least -%d", maxQuantity, maxNegativeExponent)

// CheckText refuses JSON that nests deeper than MaxDepth, that contains more than maxObjects
// objects or, if the type has quantities, a quantity that is expensive to parse. It allocates
// nothing for ordinary bodies and does not check the syntax.
func CheckText(data []byte, t reflect.Type) error {
	objects := bytes.Count(data, []byte{'{'})
	if objects+bytes.Count(data, []byte{'['}) > MaxDepth {
		if err := checkNesting(data); err != nil {
			return err
		}
	}
	// Of all escapes, only \u can encode a character of a number.
	if !suspect(data) && !bytes.Contains(data, []byte(`\u`)) || !shapeOf(t).quantities {
		return nil
	}
	return checkNumbers(data)
}

func checkNesting(data []byte) error {
	depth, objects := 0, 0
	for i := 0; i < len(data); i++ {
		switch data[i] {
		case '{', '[':
			if data[i] == '{' {
				objects++
			}
			if depth++; depth > MaxDepth {
				return apierrors.NewBadRequest(fmt.Sprintf("the object provided nests deeper than %d levels", MaxDepth))
			}
			if objects > maxObjects {
				return apierrors.NewRequestEntityTooLargeError(fmt.Sprintf("the object provided contains more than %d objects", maxObjects))
			}
		case '}', ']':
			depth--
		case '"':
			i = textEnd(data, i)
		}
	}
	return nil
}

// textEnd returns the index of the quote that ends the string beginning at i, or the length of
// data.
func textEnd(data []byte, i int) int {
	for i++; i < len(data) && data[i] != '"'; i++ {
		if data[i] == '\\' {
			i++
		}
	}
	return i
}

// suspect reports whether data may contain a quantity that is expensive to parse.
func suspect(data []byte) bool {
	if len(data) > smallBody {
		return true
	}
	for rest := data; ; {
		i := bytes.IndexByte(rest, '-')
		if i < 0 {
			return false
		}
		if i > 0 && (rest[i-1] == 'e' || rest[i-1] == 'E') && i+1 < len(rest) && '0' <= rest[i+1] && rest[i+1] <= '9' {
			return true
		}
		rest = rest[i+1:]
	}
}

// checkNumbers checks every string and number of a JSON text.
func checkNumbers(data []byte) error {
	for i := 0; i < len(data); i++ {
		start := i
		var text []byte
		switch c := data[i]; {
		case c == '"':
			i = textEnd(data, i)
			text = data[start+1 : min(i, len(data))]
			if bytes.Contains(text, []byte(`\u`)) {
				var s string
				if json.Unmarshal(data[start:min(i+1, len(data))], &s) == nil {
					text = []byte(s)
				}
			}
		case c == '-' || '0' <= c && c <= '9':
			for i+1 < len(data) && isNumber(data[i+1]) {
				i++
			}
			text = data[start : i+1]
		default:
			continue
		}
		if expensive(text) {
			return apierrors.NewBadRequest(errQuantity.Error())
		}
	}
	return nil
}

func isNumber(c byte) bool {
	return '0' <= c && c <= '9' || c == '.' || c == '-' || c == '+' || c == 'e' || c == 'E'
}

// expensive reports whether text is a number that is expensive to parse.
func expensive(text []byte) bool {
	digits := bytes.TrimLeft(text, "+-")
	mantissa := len(digits) - len(bytes.TrimLeft(digits, "0123456789."))
	if mantissa == 0 {
		return false
	}
	if mantissa > maxQuantity {
		return true
	}
	exponent := digits[mantissa:]
	if len(exponent) < 2 || exponent[0] != 'e' && exponent[0] != 'E' {
		return false
	}
	n, err := strconv.ParseInt(strings.TrimPrefix(string(exponent[1:]), "+"), 10, 64)
	if err != nil {
		return errors.Is(err, strconv.ErrRange)
	}
	return n < -maxNegativeExponent
}

// shape is what the bounds need to know about a Go type's protobuf message.
type shape struct {
	parts map[protowire.Number]part
	// quantities is true if the message can contain a quantity.
	quantities bool
}

// part is a field that is a message or is repeated.
type part struct {
	cost     int // bytes of memory for each occurrence
	inner    *shape
	quantity bool
}

var (
	shapes       sync.Map // reflect.Type -> *shape
	shapesMu     sync.Mutex
	quantityType = reflect.TypeFor[apiresource.Quantity]()
)

func shapeOf(t reflect.Type) *shape {
	if t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	if s, ok := shapes.Load(t); ok {
		return s.(*shape)
	}
	shapesMu.Lock()
	defer shapesMu.Unlock()
	made := map[reflect.Type]*shape{}
	s := makeShape(t, made)
	// The shape of a recursive type may be complete before its quantities are known, so repeat
	// until nothing changes.
	for changed := true; changed; {
		changed = false
		for _, m := range made {
			for _, p := range m.parts {
				if !m.quantities && (p.quantity || p.inner != nil && p.inner.quantities) {
					m.quantities, changed = true, true
				}
			}
		}
	}
	for t, m := range made {
		shapes.LoadOrStore(t, m)
	}
	return s
}

func makeShape(t reflect.Type, made map[reflect.Type]*shape) *shape {
	if s := made[t]; s != nil {
		return s
	}
	s := &shape{parts: map[protowire.Number]part{}}
	made[t] = s
	for i := range t.NumField() {
		f := t.Field(i)
		if tag := strings.Split(f.Tag.Get("protobuf"), ","); len(tag) > 1 {
			if n, err := strconv.ParseInt(tag[1], 10, 32); err == nil {
				if p, ok := partOf(f.Type, made); ok {
					s.parts[protowire.Number(n)] = p
				}
			}
		}
	}
	return s
}

func partOf(t reflect.Type, made map[reflect.Type]*shape) (p part, ok bool) {
	elem := t
	switch t.Kind() {
	case reflect.Pointer:
		elem = t.Elem()
		p.cost = int(elem.Size())
	case reflect.Slice:
		if elem = t.Elem(); elem.Kind() == reflect.Uint8 {
			return p, false
		}
		p.cost = 2 * int(elem.Size()) // because append doubles the capacity
	case reflect.Map:
		elem = t.Elem()
		p.cost = 2 * int(t.Key().Size()+elem.Size())
		// A map entry is a message of its own, whose second field is the value.
		inner := &shape{parts: map[protowire.Number]part{}}
		if v, ok := partOf(elem, made); ok {
			inner.parts[2] = v
			inner.quantities = v.quantity || v.inner != nil && v.inner.quantities
		}
		p.inner = inner
		return p, true
	case reflect.Struct:
	default:
		return p, false
	}
	if elem.Kind() == reflect.Pointer {
		elem = elem.Elem()
		p.cost += int(elem.Size())
	}
	switch {
	case elem == quantityType:
		p.quantity = true
	case elem.Kind() == reflect.Struct:
		p.inner = makeShape(elem, made)
	}
	return p, true
}

// CheckMessage refuses a protobuf message of type t whose decoding would take too much memory or
// time. Small messages without a suspect number are not parsed.
func CheckMessage(data []byte, t reflect.Type) error {
	if !suspect(data) {
		return nil
	}
	left := maxDecoded
	return shapeOf(t).check(data, &left, 0)
}

var errDecoded = fmt.Errorf("the message would take more than %d bytes of memory", maxDecoded)

func (s *shape) check(data []byte, left *int, depth int) error {
	if depth > MaxDepth {
		return fmt.Errorf("the message nests deeper than %d levels", MaxDepth)
	}
	for len(data) > 0 {
		num, typ, n := protowire.ConsumeTag(data)
		if n < 0 {
			return nil // the decoder reports the error
		}
		data = data[n:]
		if typ != protowire.BytesType {
			if n = protowire.ConsumeFieldValue(num, typ, data); n < 0 {
				return nil
			}
			data = data[n:]
			continue
		}
		value, n := protowire.ConsumeBytes(data)
		if n < 0 {
			return nil
		}
		data = data[n:]
		p, ok := s.parts[num]
		if !ok {
			continue
		}
		if *left -= p.cost; *left < 0 {
			return errDecoded
		}
		if p.quantity {
			if len(value) > maxQuantity || expensive(quantityText(value)) {
				return errQuantity
			}
		}
		if p.inner != nil {
			if err := p.inner.check(value, left, depth+1); err != nil {
				return err
			}
		}
	}
	return nil
}

// quantityText returns the string of an encoded Quantity. If there are several strings, the
// decoder uses the last one; this returns any that is expensive.
func quantityText(data []byte) (text []byte) {
	_ = fields(data, func(num protowire.Number, value []byte) error {
		if num == 1 && !expensive(text) {
			text = value
		}
		return nil
	})
	return text
}
