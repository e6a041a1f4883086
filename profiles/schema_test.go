package profiles

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"
)

// The JSON schemas tell editors which keys there are, and what they take. They
// are made of the raw types, of the bounds and words that the checks use, and of
// the reference's comments. They say less than `sisod check`, and never forbid
// what it takes.

type schema = map[string]any

func oneOf(words ...string) schema { return schema{"type": "string", "enum": words} }

// number is a whole number; more adds what is known besides its bounds.
func number(low, high int64, more ...schema) schema {
	s := schema{"type": "integer", "minimum": low, "maximum": high}
	for _, m := range more {
		maps.Copy(s, m)
	}
	return s
}

func either(all ...schema) schema     { return schema{"anyOf": all} }
func byDefault(v any) schema          { return schema{"default": v} }
func with(s, more schema) schema      { maps.Copy(s, more); return s }
func pattern(p string) schema         { return schema{"type": "string", "pattern": p} }
func listOf(s schema) schema          { return schema{"type": "array", "minItems": 1, "items": s} }
func oneOrMore(s schema) schema       { return either(s, listOf(s)) }
func required(names ...string) schema { return schema{"required": names} }
func needsOne(names ...string) schema {
	var all []schema
	for _, n := range names {
		all = append(all, required(n))
	}
	return either(all...)
}

var (
	schemaAddress = schema{"type": "string", "anyOf": []schema{{"format": "ipv4"}, {"format": "ipv6"}}}
	schemaPrefix  = pattern(`^[0-9A-Fa-f:.]+(/[0-9]+)?$`)
	schemaLink    = schema{"type": "string", "minLength": 1, "maxLength": maxLinkName}
	schemaTable   = either(schema{"type": "string", "minLength": 1}, number(1, lastTable))
	schemaPorts   = either(number(1, 65535), pattern(`^ *[0-9a-fx]+ *(- *[0-9a-fx]+ *)?$`))
	schemaTime    = pattern(`^\+?([0-9.]+(h|m|s|ms|us|µs|μs|ns))+$|^\+?0$`)
	schemaService = pattern(`^(` + strings.Join(transports, "|") + `)/[0-9]+$`)
	schemaMode    = oneOf(string(Tun), string(DR), string(NAT), string(FullNAT))
	schemaMSS     = number(minMSS, maxMSS)
	schemaWeight  = number(1, 256, byDefault(1))
	schemaMetric  = number(0, GuardMetric-1)
	schemaTunnel  = with(oneOf(encapsulations...), byDefault("ipip"))
	schemaOff     = schema{"type": "boolean", "default": false}
)

// schemaOf says what each key takes that its Go type does not tell all about.
var schemaOf = map[string]schema{
	"rawUplink.interface": schemaLink,
	"rawUplink.gateway":   oneOrMore(either(with(oneOf("auto", "none"), byDefault("auto")), schemaAddress)),
	"rawUplink.table":     number(1, lastTable),
	"rawUplink.addresses": listOf(schemaAddress),
	"rawUplink.sources":   schema{"type": "array", "items": schemaPrefix},
	"rawUplink.to":        schema{"type": "array", "items": either(schemaPrefix, pattern("^@."))},
	"rawUplink.guard":     {"type": "boolean", "default": true},
	"rawUplink.rp_filter": oneOf(rpFilters...),
	"rawUplink.advmss":    schemaMSS,
	"rawUplink.mtu":       number(minMTU, maxMTU),
	"rawDefault.metric":   number(1, GuardMetric-1, byDefault(DefaultMetric)),
	"rawDefault.weight":   schemaWeight,

	"rawRule.priority":              number(1, lastPriority),
	"rawRule.family":                pattern(`^([iI][pP][vV][46])$`),
	"rawRule.from":                  schemaPrefix,
	"rawRule.to":                    schemaPrefix,
	"rawRule.iif":                   schemaLink,
	"rawRule.oif":                   schemaLink,
	"rawRule.fwmark":                either(number(0, 0xffffffff), pattern(`^[0-9A-Fa-fx]+(/[0-9A-Fa-fx]+)?$`)),
	"rawRule.ipproto":               either(number(1, 255), schema{"type": "string", "minLength": 1}),
	"rawRule.sport":                 schemaPorts,
	"rawRule.dport":                 schemaPorts,
	"rawRule.uidrange":              either(number(0, lastUID), pattern(`^ *[0-9a-fx]+ *(- *[0-9a-fx]+ *)?$`)),
	"rawRule.tos":                   either(number(1, 0xff), pattern(`^[0-9A-Fa-fx]+$`)),
	"rawRule.lookup":                schemaTable,
	"rawRule.action":                oneOf(ruleActions...),
	"rawRule.suppress_prefixlength": number(0, 128),
	"rawRule.suppress_ifgroup":      number(0, lastGroup),

	"rawRoute.table":    schemaTable,
	"rawWay.to":         either(schemaPrefix, oneOf("default")),
	"rawWay.type":       with(oneOf(routeTypes...), byDefault("unicast")),
	"rawWay.via":        schemaAddress,
	"rawWay.dev":        schemaLink,
	"rawWay.src":        schemaAddress,
	"rawWay.metric":     schemaMetric,
	"rawWay.mtu":        number(minMTU, maxMTU),
	"rawWay.advmss":     schemaMSS,
	"rawWay.initcwnd":   number(1, 65535),
	"rawNexthop.via":    schemaAddress,
	"rawNexthop.dev":    schemaLink,
	"rawNexthop.weight": schemaWeight,

	"rawCapture.services":   listOf(pattern(`^(tcp|udp)/[0-9]+$`)),
	"rawCapture.interfaces": listOf(schemaLink),
	"rawCapture.listen":     pattern(`:[0-9]+$`),
	"rawCapture.upstreams":  number(1, 1<<31-1),

	"rawRealServer.mode":               schemaMode,
	"rawRealServer.vip":                oneOrMore(schemaAddress),
	"rawRealServer.services":           listOf(schemaService),
	"rawRealServer.uplink":             {"type": "string"},
	"rawRealServer.director":           oneOrMore(schemaAddress),
	"rawRealServer.interface":          schemaLink,
	"rawRealServer.encapsulation":      schemaTunnel,
	"rawRealServer.encapsulation_port": number(1, 65535),
	"rawRealServer.mss_room":           number(4, maxMSSRoom, schema{"multipleOf": 4}, byDefault(DefaultMSSRoom)),

	"rawDirector.vip":                 oneOrMore(schemaAddress),
	"rawDirector.mode":                schemaMode,
	"rawDirector.scheduler":           with(oneOf(schedulers...), byDefault(DefaultScheduler)),
	"rawDirector.scheduler_flags":     schema{"type": "array", "items": oneOf("fallback", "port")},
	"rawDirector.services":            listOf(schemaService),
	"rawDirector.fwmark":              number(1, 0xffffffff),
	"rawDirector.interface":           schemaLink,
	"rawDirector.uplink":              {"type": "string"},
	"rawDirector.persistence":         schemaTime,
	"rawDirector.persistence_netmask": either(number(1, 128), schema{"type": "string", "format": "ipv4"}),
	"rawDirector.drain":               with(maps.Clone(schemaTime), byDefault(fmt.Sprintf("%ds", int(DefaultDrain.Seconds())))),
	"rawDirector.encapsulation":       schemaTunnel,
	"rawDirector.snat":                oneOrMore(schemaAddress),
	"rawDirector.mss_room":            number(4, maxMSSRoom, schema{"multipleOf": 4}),
	"rawDirector.encapsulation_port":  number(1, 65535),
	"rawBackend.address":              schemaAddress,
	"rawBackend.weight":               number(0, maxWeight, byDefault(1)),
	"rawBackend.port":                 number(1, 65535),
	"rawBackend.upper":                number(1, 1<<31-1),
	"rawBackend.lower":                number(1, 1<<31-1),

	"rawTimeouts.tcp":     schemaTime,
	"rawTimeouts.tcp_fin": schemaTime,
	"rawTimeouts.udp":     schemaTime,
	"rawSync.role":        oneOf(syncRoles...),
	"rawSync.interface":   schemaLink,
	"rawSync.id":          number(0, 255, byDefault(0)),

	"rawSettings.priority":  number(1, lastPriority-Window+1, byDefault(DefaultSettings.Priority)),
	"rawSettings.table":     number(1, lastTable-Window, byDefault(DefaultSettings.Table)),
	"rawSettings.mark_mask": number(1, 0xffffffff, byDefault(DefaultSettings.MarkMask)),
	"rawSettings.group":     number(1, lastGroup, byDefault(DefaultSettings.Group)),
	"rawSettings.watch":     {"type": "boolean", "default": DefaultSettings.Watch},

	"rawUplink.forward":      schemaOff,
	"rawUplink.masquerade":   schemaOff,
	"rawRule.not":            schemaOff,
	"rawWay.onlink":          schemaOff,
	"rawWay.quickack":        schemaOff,
	"rawNexthop.onlink":      schemaOff,
	"rawDirector.one_packet": schemaOff,
}

// schemaNeeds are the keys that a table cannot be without.
var schemaNeeds = map[string]schema{
	"rawUplink":     required("interface"),
	"rawRule":       with(required("priority"), needsOne("lookup", "action")),
	"rawRoute":      required("table", "to"),
	"rawWay":        required("to"),
	"rawNexthop":    needsOne("via", "dev"),
	"rawRealServer": required("mode"),
	"rawDirector":   with(required("mode", "real_servers"), needsOne("services", "fwmark")),
	"rawBackend":    required("address"),
	"rawSync":       required("role", "interface"),
	"rawCapture":    required("services", "interfaces", "listen"),
}

// explained are the comments of the reference, by key: those at the end of its
// line and below, or else those above it.
func explained(t *testing.T, path string, settings bool) map[string]string {
	texts := map[string]string{}
	eachKey(t, path, settings, func(key string, n *node) {
		at := n.key
		if n.shape == array && len(n.elements) > 0 && n.elements[0].shape == table && n.elements[0].key.start < at.start {
			at = n.elements[0].key
		}
		text := n.doc.text
		begin := strings.LastIndexByte(text[:at.start], '\n') + 1
		if strings.Trim(text[begin:at.start], " [") != "" && !strings.HasPrefix(text[begin:], "[") || texts[key] != "" {
			return // within another key's value
		}
		line, below, _ := strings.Cut(text[begin:], "\n")
		var words []string
		if _, comment, found := strings.Cut(line, " # "); found {
			words = append(words, comment)
			for next := range strings.Lines(below) {
				more, isComment := strings.CutPrefix(next, "# ")
				if !isComment {
					break
				}
				words = append(words, strings.TrimSpace(more))
			}
		} else {
			above := strings.Split(text[:begin], "\n")
			for _, l := range slices.Backward(above[:len(above)-1]) {
				if !strings.HasPrefix(l, "#") || strings.HasPrefix(l, "# ---") {
					break
				}
				words = append([]string{strings.TrimSpace(strings.TrimPrefix(l, "#"))}, words...)
			}
		}
		if joined := strings.TrimSpace(strings.Join(words, "\n")); joined != "" {
			texts[key] = joined
		}
	})
	return texts
}

// schemas makes the schema of a raw type, and those of the types within.
type schemas struct {
	t     *testing.T
	texts map[string]string
	found map[string]any
	used  map[string]bool
}

func (s *schemas) table(of reflect.Type) schema {
	properties := schema{}
	for _, f := range reflect.VisibleFields(of) {
		name := f.Tag.Get("toml")
		if name == "" {
			continue
		}
		// Keys that two types share are told once.
		key, text := of.Name()+"."+name, of.Name()+"."+name
		if of == reflect.TypeFor[rawRoute]() && name != "table" {
			key = "rawWay." + name
		}
		if _, told := s.texts[text]; !told {
			text = strings.Replace(text, "rawWay.", "rawRoute.", 1)
		}
		p := maps.Clone(s.value(key, f.Type))
		if d := s.texts[text]; d != "" {
			p["description"] = d
		}
		properties[name] = p
	}
	out := schema{"type": "object", "additionalProperties": false, "properties": properties}
	maps.Copy(out, schemaNeeds[of.Name()])
	return out
}

func (s *schemas) value(key string, of reflect.Type) schema {
	if known, ok := schemaOf[key]; ok {
		s.used[key] = true
		return known
	}
	next, isTable := inner(of)
	if !isTable {
		s.t.Errorf("schemaOf does not say what %s takes", key)
		return schema{}
	}
	name := strings.TrimPrefix(next.Name(), "raw")
	if s.found[name] == nil {
		s.found[name] = schema{}
		s.found[name] = s.table(next)
	}
	ref := schema{"$ref": "#/definitions/" + name}
	items, _ := of.FieldByName("items")
	switch {
	case items.Type == nil:
		return schema{"allOf": []schema{ref}} // a description may stand beside it
	case items.Type.Kind() == reflect.Map:
		return schema{"type": "object", "additionalProperties": ref}
	default:
		return schema{"type": "array", "items": ref}
	}
}

func TestSchemasAreThoseOfTheTypes(t *testing.T) {
	used := map[string]bool{}
	for _, c := range []struct {
		file, title, reference string
		settings               bool
		of                     reflect.Type
	}{
		{"schema.json", "a profile of sisod: /etc/sisod/profiles/*.toml", "reference.toml", false, reflect.TypeFor[rawProfile]()},
		{"settings.schema.json", "the settings of sisod: /etc/sisod/sisod.toml", "reference-settings.toml", true, reflect.TypeFor[rawSettings]()},
	} {
		s := &schemas{t: t, texts: explained(t, c.reference, c.settings), found: map[string]any{}, used: used}
		doc := s.table(c.of)
		doc["$schema"], doc["title"] = "http://json-schema.org/draft-07/schema#", c.title
		if len(s.found) > 0 {
			doc["definitions"] = s.found
		}
		var want bytes.Buffer
		e := json.NewEncoder(&want)
		e.SetEscapeHTML(false)
		e.SetIndent("", "  ")
		if err := e.Encode(doc); err != nil {
			t.Fatal(err)
		}
		if *update {
			if err := os.WriteFile(c.file, want.Bytes(), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		have, err := os.ReadFile(c.file)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(have, want.Bytes()) {
			t.Errorf("%s is not what the types say; write it anew: go test ./profiles -run TestSchemas -update", c.file)
		}
	}
	for key := range schemaOf {
		if !used[key] {
			t.Errorf("schemaOf has %s, which no type has", key)
		}
	}
}

// schemaLine is the first line of the files that people copy: editors find the
// schema by it on a host that has the package, also in /etc/sisod.
const schemaLine = "#:schema file:///usr/share/sisod/"

func TestExamplesNameTheirSchema(t *testing.T) {
	for path, want := range map[string]string{
		"examples/*.toml": "schema.json", "reference.toml": "schema.json",
		"reference-settings.toml": "settings.schema.json", "../packaging/sisod.toml": "settings.schema.json",
	} {
		for _, file := range globbed(t, path) {
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if !strings.HasPrefix(string(text), schemaLine+want+"\n") {
				t.Errorf("the first line of %s is not %s%s", file, schemaLine, want)
			}
		}
	}
}
