// What a JSON schema of openapi.json says, for people: names of types, rows of fields, and a body to begin with.

const DEEPEST = 3;  // levels of fields in fields that are shown

export class Schemas {
  /** `model` is the name that examples use. */
  constructor(description, model) {
    this.model = model;
    this.named = description.components?.schemas ?? {};
  }

  /** Without the reference, and without the null that every optional field allows. */
  plain(schema) {
    if (schema.$ref) return this.named[schema.$ref.split("/").pop()] ?? {};
    const choices = (schema.anyOf ?? []).filter((choice) => choice.type !== "null");
    return choices.length === 1 ? this.plain(choices[0]) : schema;
  }

  typeName(schema) {
    const type = this.plain(schema);
    if (type.anyOf) return type.anyOf.filter((one) => one.type !== "null").map((one) => this.typeName(one)).join(" or ");
    if (type.const !== undefined) return JSON.stringify(type.const);
    if (type.enum) return type.enum.map((value) => JSON.stringify(value)).join(", ");
    if (type.type === "array") return `list of ${this.typeName(type.items ?? {})}${bounds(type.minItems, type.maxItems)}`;
    return `${type.type ?? "anything"}${bounds(type.minimum, type.maximum)}`;
  }

  /** [{name, type, description, required}], what is required first, fields of fields included: `messages[].role`. */
  fields(schema, prefix = "", depth = 1) {
    const { properties = {}, required = [] } = this.plain(schema);
    const inOrder = Object.entries(properties).sort(([one], [other]) => required.includes(other) - required.includes(one));
    return inOrder.flatMap(([name, field]) => {
      const row = { name: prefix + name, type: this.typeName(field), description: this.description(field), required: required.includes(name) };
      return [row, ...(depth < DEEPEST ? this.inner(field, prefix + name, depth + 1) : [])];
    });
  }

  inner(field, name, depth) {
    const type = this.plain(field);
    const choices = type.anyOf ?? [type];
    return choices.map((choice) => this.plain(choice)).flatMap((choice) => {
      if (choice.type === "array") return this.inner(choice.items ?? {}, `${name}[]`, depth);
      return choice.properties ? this.fields(choice, `${name}.`, depth) : [];
    });
  }

  description(field) {
    return field.description ?? (field.$ref ? "" : this.plain(field).description) ?? "";
  }

  /** The example that the schema has, or its required fields. */
  sample(schema) {
    const type = this.plain(schema);
    if (type.examples?.length) return this.withModel(type.examples[0]);
    if (type.enum) return type.enum[0];
    if (type.anyOf) return this.sample(type.anyOf[0]);
    if (type.type === "array") return [this.sample(type.items ?? {})];
    if (type.type === "object") return this.withModel(Object.fromEntries((type.required ?? []).map((name) => [name, this.sample(type.properties[name])])));
    return { string: "", integer: 0, number: 0, boolean: false }[type.type] ?? null;
  }

  withModel(body) {
    return "model" in body ? { ...body, model: this.model } : body;
  }
}

function bounds(least, most) {
  const tells = (bound) => bound !== undefined && Math.abs(bound) < 2 ** 31 - 1;  // the others bound the number's size
  if (tells(most)) return tells(least) ? `, ${least} to ${most}` : `, at most ${most}`;
  return tells(least) ? `, at least ${least}` : "";
}
